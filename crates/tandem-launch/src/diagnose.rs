//! Known failures of servers: what a log line means, and which knob to change.

/// What a failure is, in words, and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cause {
    /// What happened.
    pub what: &'static str,
    /// What to change.
    pub hint: &'static str,
}

/// Texts of which one must occur in a line (case does not matter), and what they mean. The first match wins.
const KNOWN: [(&[&str], Cause); 7] = [
    (
        &["cuda out of memory", "outofmemoryerror", "cuda error: out of memory", "cudamalloc failed"],
        Cause {
            what: "a GPU ran out of memory",
            hint: "lower CTX_MAX_NUM_TOKENS (prefill) or GEN_MAX_BATCH_SIZE and GEN_MAX_NUM_TOKENS (decode), then CTX_GPU_MEMORY_FRACTION or GEN_GPU_MEMORY_FRACTION",
        },
    ),
    (
        &["oom-kill", "out of memory: killed process", "detected 1 oom", "cannot allocate memory", "std::bad_alloc"],
        Cause {
            what: "the host ran out of memory",
            hint: "ask for more (`--option mem=0` takes all of a node) or put fewer servers on a node",
        },
    ),
    (
        &["address already in use", "errno 98", "address in use"],
        Cause {
            what: "a port is in use",
            hint: "leave --port away, so that a free one is found, or set DYNAMO_FRONTEND_PORT, ETCD_SERVER_PORT, NATS_SERVER_PORT",
        },
    ),
    (
        &["nccl error", "ncclsystemerror", "ncclinternalerror", "nccl warn", "ncclremoteerror", "ncclunhandledcudaerror"],
        Cause {
            what: "NCCL failed between the ranks of a server",
            hint: "check the network between its nodes (NCCL_SOCKET_IFNAME, NCCL_IB_HCA; NCCL_DEBUG=INFO says more)",
        },
    ),
    (
        &["kv transfer failed", "cachetransceiver", "kv cache transfer", "nixl_err", "ucx error", "ucs_err"],
        Cause {
            what: "the transfer of a KV cache from prefill to decode failed",
            hint: "check UCX_TLS, UCX_NET_DEVICES and that the servers reach each other; a prompt longer than the transceiver's buffer (max_tokens_in_buffer, from ISL) fails too",
        },
    ),
    (
        &["invalid mpi type", "mpi_init", "pmix error", "pmix_error"],
        Cause { what: "MPI could not start", hint: "`srun --mpi=list` shows what this cluster has; choose it with --mpi" },
    ),
    (
        &["no such file or directory", "command not found", "execve(): "],
        Cause {
            what: "a program or file is missing on the node",
            hint: "paths must exist on every node, or be mounted into the container (--mount)",
        },
    ),
];

/// The first known failure in the lines of a log.
#[must_use]
pub fn diagnose<S: AsRef<str>>(lines: &[S]) -> Option<Cause> {
    let lines: Vec<String> = lines.iter().map(|line| line.as_ref().to_lowercase()).collect();
    let occurs = |texts: &[&str]| lines.iter().any(|line| texts.iter().any(|text| line.contains(text)));
    KNOWN.iter().find(|(texts, _)| occurs(texts)).map(|(_, cause)| *cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_messages_are_explained_with_the_knob() {
        let check = |line: &str, what: &str, knob: &str| {
            let cause = diagnose(&["starting", line]).unwrap_or_else(|| panic!("{line}"));
            assert!(cause.what.contains(what) && cause.hint.contains(knob), "{line}: {cause:?}");
        };
        check("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "GPU ran out", "CTX_MAX_NUM_TOKENS");
        check("slurmstepd: error: Detected 1 oom_kill event in StepId=7.1", "host ran out", "mem=0");
        check("OSError: [Errno 98] Address already in use", "port", "--port");
        check("error: cannot listen on 127.0.1.1:8000: Address already in use (os error 98)", "port", "DYNAMO_FRONTEND_PORT");
        check("NCCL WARN Connect to 10.0.0.2<4321> failed", "NCCL", "NCCL_SOCKET_IFNAME");
        check("[TensorRT-LLM][ERROR] cacheTransceiver: kv transfer failed", "KV cache", "UCX_TLS");
        check("srun: error: Invalid MPI type 'pmix', consult --mpi=list for acceptable values", "MPI", "--mpi");
        assert_eq!(diagnose(&["all is well", "iter = 7"]), None);
    }
}
