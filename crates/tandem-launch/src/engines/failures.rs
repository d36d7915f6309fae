//! Failures that engines write into their logs, what they mean, and what to change.

/// A failure that a log line gives away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownFailure {
    /// Short name for events.
    pub code: &'static str,
    /// Any of these texts in a line, in lower case.
    marks: &'static [&'static str],
    /// What happened.
    pub meaning: &'static str,
    /// What helps.
    pub advice: &'static str,
}

const KNOWN: [KnownFailure; 8] = [
    KnownFailure {
        code: "kv_transfer",
        marks: &["kvtransfererror", "kv transfer failed", "kv cache transfer timeout", "cache transceiver", "nixl_err", "nixl error"],
        meaning: "the KV cache could not be moved from a prefill to a decode server",
        advice: "check that both nodes reach each other over the fabric (UCX_NET_DEVICES), and that the transceiver's buffer holds ISL",
    },
    KnownFailure {
        code: "device_out_of_memory",
        marks: &["cuda out of memory", "outofmemoryerror", "cudaerrormemoryallocation", "cuda_error_out_of_memory"],
        meaning: "a device ran out of memory",
        advice: "lower CTX_MAX_NUM_TOKENS (prefill) or GEN_MAX_BATCH_SIZE and GEN_MAX_NUM_TOKENS (decode), then the GPU_MEMORY_FRACTION",
    },
    KnownFailure {
        code: "host_out_of_memory",
        marks: &["oom-kill", "oom_kill", "cannot allocate memory", "std::bad_alloc", "memoryerror"],
        meaning: "the host ran out of memory",
        advice: "ask for more memory on the node, or place fewer servers on it",
    },
    KnownFailure {
        code: "nccl",
        marks: &["nccl error", "ncclsystemerror", "ncclunhandledcudaerror", "ncclinternalerror", "ncclremoteerror", "nccl watchdog"],
        meaning: "the ranks of a server lost each other (NCCL)",
        advice: "another rank may have died first: read its log; otherwise check the fabric with NCCL_DEBUG=INFO",
    },
    KnownFailure {
        code: "port_taken",
        marks: &["address already in use", "eaddrinuse", "errno 98"],
        meaning: "a port is taken by another process",
        advice: "set DYNAMO_FRONTEND_PORT, ETCD_SERVER_PORT or NATS_SERVER_PORT to a free one (0 lets the launcher choose)",
    },
    KnownFailure {
        code: "no_etcd",
        marks: &["unable to create lease", "check etcd server status", "lease expired", "lease not found"],
        meaning: "a server could not reach etcd, or lost its lease because it was starved of CPU",
        advice: "look at logs/etcd.log; a busy head node starves etcd: place the frontend on a node of its own",
    },
    KnownFailure {
        code: "no_module",
        marks: &["modulenotfounderror", "no module named"],
        meaning: "the Python environment lacks a module",
        advice: "point ENGINE_PYTHON at an environment with Dynamo; docs/guide/dynamo.md says how to make one",
    },
    KnownFailure {
        code: "no_space",
        marks: &["no space left on device"],
        meaning: "a disk is full",
        advice: "free space, or set TMPDIR and the cache folders to another disk",
    },
];

/// The first known failure that `lines` give away.
pub fn explain<S: AsRef<str>>(lines: &[S]) -> Option<&'static KnownFailure> {
    let lines: Vec<String> = lines.iter().map(|line| line.as_ref().to_lowercase()).collect();
    KNOWN.iter().find(|known| known.marks.iter().any(|mark| lines.iter().any(|line| line.contains(mark))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_real_logs_are_recognised() {
        let cases = [
            ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.50 GiB.", Some("device_out_of_memory")),
            ("slurmstepd: error: Detected 1 oom_kill event in StepId=3.0.", Some("host_out_of_memory")),
            ("RuntimeError: NCCL error in: ProcessGroupNCCL.cpp:1, unhandled system error", Some("nccl")),
            ("OSError: [Errno 98] Address already in use", Some("port_taken")),
            ("Exception: Unable to create lease. Check etcd server status at http://localhost:2379", Some("no_etcd")),
            ("ModuleNotFoundError: No module named 'dynamo'", Some("no_module")),
            ("[E] KVTransferError: bootstrap room timed out", Some("kv_transfer")),
            ("iter = 3, states = {'num_ctx_tokens': 0}", None),
        ];
        for (line, code) in cases {
            assert_eq!(explain(&["before", line, "after"]).map(|k| k.code), code, "{line}");
        }
    }
}
