//! A frontend that the test plays itself, workers over real loopback sockets, and engines that can be held and broken.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tandem_engine::{
    Batch, BatchEntry, Engine, EngineError, EngineInfo, KvRead, ModeledEngine, NoObserver, Sampling, StepObserver, StepOutput, build_engine,
};
use tandem_plan::hardware::GpuType;
use tandem_plan::plan::PLAN_SCHEMA_VERSION;
use tandem_plan::{
    Address, Bytes, EngineKind, EngineLimits, FrontendPlan, Hardware, KvDtype, KvPlan, LoadPlan, MemoryBudget, ModelConfig, ModelPlan,
    ModelSource, ModeledCosts, ParallelLayout, Phase, Plan, RankPlan, Routing, WorkerPlan,
};
use tandem_wire::frame;
use tandem_wire::worker::{FinishReason, FromWorker, HEARTBEAT_MS, KvTarget, RequestId, SamplingParams, ToWorker, WorkerStats};
use tandem_worker::{WorkerError, WorkerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Everything that a test waits for comes within this time, or the test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const VOCAB: u32 = 256;
pub(crate) const FREE: ModeledCosts = ModeledCosts { step_us: 0.0, prefill_token_us: 0.0, decode_seq_us: 0.0 };

/// Small, with everything that the architecture has.
const CONFIG: &str = r#"{"model_type":"deepseek_v3","vocab_size":256,"hidden_size":32,"intermediate_size":48,"moe_intermediate_size":16,
    "num_hidden_layers":3,"num_attention_heads":2,"n_routed_experts":4,"n_shared_experts":1,"num_experts_per_tok":2,"n_group":2,
    "topk_group":1,"first_k_dense_replace":1,"scoring_func":"sigmoid","topk_method":"noaux_tc","norm_topk_prob":true,
    "q_lora_rank":16,"kv_lora_rank":16,"qk_nope_head_dim":8,"qk_rope_head_dim":8,"v_head_dim":8}"#;

/// A worker of small limits; tests change what they are about.
pub(crate) fn worker_plan(phase: Phase, index: u32) -> WorkerPlan {
    WorkerPlan {
        name: format!("{phase}-{index}"),
        phase,
        index,
        layout: ParallelLayout::SINGLE,
        ranks: vec![RankPlan { rank: 0, node: 0, device: index }],
        limits: EngineLimits { max_batch_size: 8, max_num_tokens: 16, max_seq_len: 200, chunked_prefill: true },
        kv: KvPlan { block_size: 8, n_blocks: 64, dtype: KvDtype::Fp8, memory_fraction: 0.5 },
        memory: MemoryBudget {
            device: Bytes(0),
            weights: Bytes(0),
            workspace: Bytes(0),
            kv: Bytes(0),
            margin: Bytes(0),
            kv_bytes_per_token: 16,
            sequences: 2,
        },
        stream_interval: 1,
        moe_backend: "CUTLASS".into(),
        mtp_size: 0,
        eplb_slots: 0,
        transceiver_tokens: 256,
        threads: 1,
    }
}

pub(crate) fn plan(worker: &WorkerPlan, engine: EngineKind, eos: Option<u32>) -> Plan {
    let local = |port| Address { host: "127.0.0.1".into(), port };
    Plan {
        schema_version: PLAN_SCHEMA_VERSION,
        recipe: "test".into(),
        knobs: Default::default(),
        hardware: Hardware { gpu_type: GpuType::Cpu, devices_per_node: 2, device_memory: Bytes::gib(1) },
        engine,
        model: ModelPlan {
            served_name: "test".into(),
            source: ModelSource::Dummy { seed: 0 },
            tokenizer_dir: None,
            config: ModelConfig { eos_token_id: eos, ..ModelConfig::from_json(CONFIG).unwrap() },
            modeled: FREE,
        },
        frontend: FrontendPlan {
            node: 0,
            http: local(0),
            control: local(0),
            routing: Routing::RoundRobin,
            max_inflight: 100,
            max_body_bytes: 1 << 20,
            request_timeout_ms: 60_000,
        },
        workers: vec![worker.clone()],
        load: LoadPlan { isl: 10, osl: 10, streaming: true, seed: 1, request_timeout_ms: 60_000, points: Vec::new() },
        n_nodes: 1,
    }
}

pub(crate) fn sampling(max_tokens: u32) -> SamplingParams {
    SamplingParams {
        max_tokens,
        min_tokens: 0,
        ignore_eos: false,
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        seed: 0,
        stop_token_ids: Vec::new(),
    }
}

pub(crate) fn prompt(seed: u32, n: u32) -> Vec<u32> {
    (0..n).map(|i| (seed * 101 + i * 37 + 11) % VOCAB).collect()
}

/// The text of a request by the modeled engine alone.
pub(crate) fn reference(tokens: &[u32], n: u32) -> Vec<u32> {
    let kv = KvPlan { block_size: 1000, n_blocks: 1, dtype: KvDtype::Fp8, memory_fraction: 0.5 };
    aggregated(&mut ModeledEngine::new(FREE, &kv, VOCAB), tokens, n, &Sampling::GREEDY)
}

/// The text of a request by an engine alone: one step for the prompt, one for each further token.
pub(crate) fn aggregated(engine: &mut dyn Engine, tokens: &[u32], n: u32, sampling: &Sampling) -> Vec<u32> {
    let mut text: Vec<u32> = Vec::new();
    for i in 0..n {
        let start = if i == 0 { 0 } else { u32::try_from(tokens.len()).unwrap() + i - 1 };
        let input = text.last().map_or_else(|| tokens.to_vec(), |&t| vec![t]);
        let sampling = Some(Sampling { output_index: i, ..sampling.clone() });
        let entry = BatchEntry { tokens: input, start, blocks: vec![0], sampling, decode: i > 0 };
        text.push(engine.step(&Batch { entries: vec![entry] }, &mut NoObserver).unwrap().tokens[0][0]);
    }
    text
}

/// Lets as many steps pass as the test allows; all of them while it is open.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// None = open.
    permits: Mutex<Option<usize>>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn closed() -> Arc<Gate> {
        let gate = Gate::default();
        gate.set(Some(0));
        Arc::new(gate)
    }

    pub(crate) fn open(&self) {
        self.set(None);
    }

    pub(crate) fn allow(&self, n_steps: usize) {
        self.set(Some(n_steps));
    }

    fn set(&self, permits: Option<usize>) {
        *self.permits.lock().unwrap() = permits;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut permits = self.changed.wait_while(self.permits.lock().unwrap(), |p| *p == Some(0)).unwrap();
        if let Some(n) = permits.as_mut() {
            *n -= 1;
        }
    }
}

/// What a [`TestEngine`] does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Refuses batches that contain this token.
    Refuses(u32),
    /// Breaks at the first step.
    Breaks,
    /// Panics at the first step.
    Panics,
    /// Cannot write KV.
    KvWrite,
}

/// The modeled engine behind a gate.
pub(crate) struct TestEngine {
    inner: ModeledEngine,
    gate: Arc<Gate>,
    layer_gate: Arc<Gate>,
    fault: Fault,
}

/// Holds a step after each layer, once whoever watches it has been told.
struct HeldLayers<'a> {
    watcher: &'a mut dyn StepObserver,
    gate: &'a Gate,
}

impl StepObserver for HeldLayers<'_> {
    fn layer_done(&mut self, layer: usize, cache: &dyn KvRead) {
        self.watcher.layer_done(layer, cache);
        self.gate.pass();
    }
}

impl KvRead for TestEngine {
    fn kv_read(&self, layer: usize, blocks: &[u32], tokens: Range<usize>, out: &mut Vec<u8>) {
        self.inner.kv_read(layer, blocks, tokens, out);
    }
}

impl Engine for TestEngine {
    fn info(&self) -> &EngineInfo {
        self.inner.info()
    }

    fn step(&mut self, batch: &Batch, observer: &mut dyn StepObserver) -> Result<StepOutput, EngineError> {
        self.gate.pass();
        match self.fault {
            Fault::Refuses(token) if batch.entries.iter().any(|e| e.tokens.contains(&token)) => Err(EngineError::Batch("poison".into())),
            Fault::Breaks => Err(EngineError::Unsupported { engine: "test", reason: "broken".into() }),
            Fault::Panics => panic!("the test wants this panic"),
            _ => self.inner.step(batch, &mut HeldLayers { watcher: observer, gate: &self.layer_gate }),
        }
    }

    fn kv_write(&mut self, layer: usize, blocks: &[u32], tokens: Range<usize>, bytes: &[u8]) -> Result<(), EngineError> {
        match self.fault {
            Fault::KvWrite => Err(EngineError::Batch("no KV today".into())),
            _ => self.inner.kv_write(layer, blocks, tokens, bytes),
        }
    }
}

/// How a worker is started.
pub(crate) struct Spec {
    pub(crate) worker: WorkerPlan,
    pub(crate) engine: EngineKind,
    pub(crate) gate: Arc<Gate>,
    pub(crate) layer_gate: Arc<Gate>,
    pub(crate) fault: Fault,
    pub(crate) eos: Option<u32>,
    pub(crate) costs: ModeledCosts,
    pub(crate) kv_listen: &'static str,
    pub(crate) reconnect: bool,
    pub(crate) connect_within: Duration,
    pub(crate) reservation_deadline: Option<Duration>,
    pub(crate) log: Option<Box<dyn std::io::Write + Send>>,
}

impl Spec {
    pub(crate) fn new(phase: Phase) -> Self {
        Self {
            worker: worker_plan(phase, 0),
            engine: EngineKind::Modeled,
            gate: Arc::default(),
            layer_gate: Arc::default(),
            fault: Fault::None,
            eos: None,
            costs: FREE,
            kv_listen: "127.0.0.1:0",
            reconnect: false,
            connect_within: Duration::from_millis(200),
            reservation_deadline: None,
            log: None,
        }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// A running worker, as alone as a process: on a thread and runtime of its own.
pub(crate) struct Worker {
    pub(crate) link: Link,
    pub(crate) frontend: TcpListener,
    gate: Arc<Gate>,
    shutdown: CancellationToken,
    kill: CancellationToken,
    /// None when it was killed.
    ended: oneshot::Receiver<Option<Result<(), WorkerError>>>,
}

impl Worker {
    pub(crate) async fn start(spec: Spec) -> Worker {
        let frontend = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = frontend.local_addr().unwrap().to_string();
        let (shutdown, kill, gate) = (CancellationToken::new(), CancellationToken::new(), Arc::clone(&spec.gate));
        let (ended_tx, ended) = oneshot::channel();
        let (shutdown_in, kill_in) = (shutdown.clone(), kill.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let result = runtime.block_on(async {
                tokio::select! {
                    () = kill_in.cancelled() => None,
                    result = serve(spec, address, shutdown_in) => Some(result),
                }
            });
            // Closes every socket, whoever still holds a handle to it.
            runtime.shutdown_background();
            let _ = ended_tx.send(result);
        });
        let link = Link::accept(&frontend).await;
        Worker { link, frontend, gate, shutdown, kill, ended }
    }

    /// As if the process were killed: every socket is closed and nothing is said; a held step stays held until then.
    pub(crate) async fn kill(mut self) {
        self.kill.cancel();
        assert!(timeout(LIMIT, &mut self.ended).await.unwrap().unwrap().is_none());
    }

    /// Asks it to end.
    pub(crate) async fn stop(mut self) -> Result<(), WorkerError> {
        self.gate.open();
        self.shutdown.cancel();
        self.ended().await
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> Result<(), WorkerError> {
        timeout(LIMIT, &mut self.ended).await.unwrap().unwrap().expect("it was not killed")
    }

    /// Lets one held step pass after another until a heartbeat says what is wanted.
    pub(crate) async fn step_until(&mut self, wanted: impl Fn(&WorkerStats) -> bool + Copy) {
        timeout(LIMIT, async {
            loop {
                self.gate.allow(1);
                if timeout(Duration::from_millis(2 * HEARTBEAT_MS), self.link.until(wanted)).await.is_ok() {
                    return;
                }
            }
        })
        .await
        .unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.gate.open();
        self.kill.cancel();
    }
}

/// Runs a worker against a frontend that is not there yet or is played by the test.
pub(crate) async fn serve(spec: Spec, frontend: String, shutdown: CancellationToken) -> Result<(), WorkerError> {
    let plan = plan(&spec.worker, spec.engine, spec.eos);
    let kv_listener = TcpListener::bind(spec.kv_listen).await.unwrap();
    let mut options = WorkerOptions::new(frontend, kv_listener);
    options.iteration_log = spec.log;
    options.reconnect = spec.reconnect;
    options.reservation_deadline = spec.reservation_deadline;
    options.connect_within = spec.connect_within;
    let engine: Box<dyn Engine> = match spec.engine {
        EngineKind::Modeled => {
            let inner = ModeledEngine::new(spec.costs, &spec.worker.kv, VOCAB);
            Box::new(TestEngine { inner, gate: spec.gate, layer_gate: spec.layer_gate, fault: spec.fault })
        }
        _ => build_engine(&plan, &spec.worker).unwrap(),
    };
    tandem_worker::run(&plan, &spec.worker, engine, options, shutdown).await
}

/// The frontend's end of one worker's connection.
pub(crate) struct Link {
    pub(crate) hello: FromWorker,
    /// None when closed.
    writer: Option<OwnedWriteHalf>,
    /// All messages but heartbeats.
    messages: mpsc::UnboundedReceiver<FromWorker>,
    stats: watch::Receiver<WorkerStats>,
    pump: JoinSet<()>,
}

impl Link {
    /// Accepts a worker and welcomes it.
    pub(crate) async fn accept(listener: &TcpListener) -> Link {
        let mut link = Link::accept_only(listener).await;
        link.send(ToWorker::Welcome).await;
        link
    }

    /// Accepts a worker and reads its hello.
    pub(crate) async fn accept_only(listener: &TcpListener) -> Link {
        let (stream, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
        stream.set_nodelay(true).unwrap();
        let (reader, writer) = stream.into_split();
        let (message_tx, mut messages) = mpsc::unbounded_channel();
        let (stats_tx, stats) = watch::channel(WorkerStats::default());
        let mut pump = JoinSet::new();
        pump.spawn(async move {
            let (mut reader, mut buffer) = (reader, Vec::new());
            loop {
                while let Some((message, n_used)) = frame::decode::<FromWorker>(&buffer).unwrap() {
                    buffer.drain(..n_used);
                    match message {
                        FromWorker::Heartbeat { stats } => drop(stats_tx.send(stats)),
                        message => drop(message_tx.send(message)),
                    }
                }
                if !matches!(reader.read_buf(&mut buffer).await, Ok(n) if n > 0) {
                    return;
                }
            }
        });
        let hello = timeout(LIMIT, messages.recv()).await.unwrap().unwrap();
        Link { hello, writer: Some(writer), messages, stats, pump }
    }

    /// Closes this connection and accepts the next one.
    pub(crate) async fn reopen(&mut self, listener: &TcpListener) {
        self.close();
        *self = Link::accept(listener).await;
    }

    /// Closes the connection.
    pub(crate) fn close(&mut self) {
        self.pump.abort_all();
        self.writer = None;
    }

    pub(crate) async fn send(&mut self, message: ToWorker) {
        let mut bytes = Vec::new();
        frame::encode(&message, &mut bytes).unwrap();
        self.writer.as_mut().expect("the connection is open").write_all(&bytes).await.unwrap();
    }

    pub(crate) async fn reserve(&mut self, id: u64, n_prompt: u32, sampling: SamplingParams) {
        self.send(ToWorker::Reserve { id: RequestId(id), n_prompt, sampling }).await;
    }

    pub(crate) async fn prefill(&mut self, id: u64, tokens: Vec<u32>, sampling: SamplingParams, target: Option<KvTarget>) {
        self.send(ToWorker::Prefill { id: RequestId(id), tokens, sampling, target }).await;
    }

    pub(crate) async fn cancel(&mut self, id: u64) {
        self.send(ToWorker::Cancel { id: RequestId(id) }).await;
    }

    /// The next message that is no heartbeat; none when the connection is closed.
    pub(crate) async fn try_next(&mut self) -> Option<FromWorker> {
        timeout(LIMIT, self.messages.recv()).await.expect("a message comes in time")
    }

    pub(crate) async fn next(&mut self) -> FromWorker {
        self.try_next().await.expect("the connection is open")
    }

    pub(crate) async fn reserved(&mut self) -> (u64, KvTarget) {
        match self.next().await {
            FromWorker::Reserved { id, target } => (id.0, target),
            other => panic!("not reserved: {other:?}"),
        }
    }

    /// Waits until a heartbeat says so.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&WorkerStats) -> bool) -> WorkerStats {
        let mut stats = self.stats.clone();
        let found = timeout(LIMIT, stats.wait_for(wanted)).await;
        *found.unwrap_or_else(|_| panic!("the statistics stay {:?}", self.stats.borrow())).expect("the connection is open")
    }

    /// Waits until a heartbeat says that nothing is held.
    pub(crate) async fn until_idle(&mut self) {
        self.until(|s| s.kv_blocks_used == 0 && s.n_waiting + s.n_running + s.n_transferring == 0).await;
    }

    /// Waits for `n` more heartbeats.
    pub(crate) async fn beats(&mut self, n: usize) {
        self.stats.mark_unchanged();
        for _ in 0..n {
            timeout(LIMIT, self.stats.changed()).await.unwrap().unwrap();
        }
    }

    /// Forgets the messages that are there.
    pub(crate) fn drain(&mut self) {
        while self.messages.try_recv().is_ok() {}
    }

    /// Whether no message is there.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.messages.is_empty()
    }
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Text {
    pub(crate) tokens: Vec<u32>,
    /// Tokens of each event.
    pub(crate) events: Vec<usize>,
    pub(crate) finish: Option<FinishReason>,
}

/// Reads token events until `n` requests have finished.
pub(crate) async fn texts(link: &mut Link, n: usize) -> HashMap<u64, Text> {
    let mut texts: HashMap<u64, Text> = HashMap::new();
    while texts.values().filter(|t| t.finish.is_some()).count() < n {
        match link.next().await {
            FromWorker::Tokens { events } => {
                for event in events {
                    let text = texts.entry(event.id.0).or_default();
                    assert!(text.finish.is_none(), "tokens after the last: {event:?}");
                    text.events.push(event.tokens.len());
                    text.tokens.extend(event.tokens);
                    text.finish = event.finish;
                }
            }
            other => panic!("not tokens: {other:?}"),
        }
    }
    texts
}

/// The first token of the next request that the prefill worker finishes.
pub(crate) async fn first_tokens(link: &mut Link) -> Vec<(u64, Vec<u32>, Option<FinishReason>)> {
    match link.next().await {
        FromWorker::Tokens { events } => events.into_iter().map(|e| (e.id.0, e.tokens, e.finish)).collect(),
        other => panic!("not tokens: {other:?}"),
    }
}

/// An address where nobody listens.
pub(crate) async fn dead_address() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

/// Accepts connections and reads them to their end, but never answers.
pub(crate) async fn silent_peer(tasks: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tasks.spawn(async move {
        let mut open: Vec<JoinSet<()>> = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            let mut set = JoinSet::new();
            set.spawn(swallow(stream));
            open.push(set);
        }
    });
    address
}

async fn swallow(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while matches!(stream.read(&mut buffer).await, Ok(n) if n > 0) {}
}
