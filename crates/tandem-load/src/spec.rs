//! What a load run is to do: plain data, checked once.

use std::sync::Arc;

use serde_json::{Map, Value};
use tandem_plan::Nanos;

use crate::error::LoadError;
use crate::pacing::{Arrivals, Load};
use crate::prompts::files::GivenPrompt;
use crate::prompts::lengths::Lengths;
use crate::prompts::trace::TraceRequest;
use crate::target::Target;
use crate::transport::http::Limits;
use crate::transport::request::ApiKey;
use crate::transport::tls::TlsOptions;

/// Deadlines of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For one connection.
    pub connect: Nanos,
    /// For one request, from its sending to the end of its response.
    pub request: Nanos,
    /// Without a byte in either direction on a request's connection. Has to exceed the time to first token.
    pub no_progress: Nanos,
    /// For requests in flight after a graceful stop.
    pub grace: Nanos,
}

impl Timeouts {
    /// Long enough for a saturated deployment of a large model.
    pub const DEFAULT: Timeouts = Timeouts {
        connect: Nanos::from_millis(10_000),
        request: Nanos::from_millis(3_600_000),
        no_progress: Nanos::from_millis(600_000),
        grace: Nanos::from_millis(30_000),
    };
}

/// What requests say.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompts {
    /// Random words, each prompt another.
    Synthetic {
        /// What prompts begin with that others begin with too.
        prefix: Option<Prefix>,
    },
    /// The user's own, in order, from the first again when they are used up.
    Given {
        /// They.
        prompts: Arc<[GivenPrompt]>,
        /// Whether the file's output lengths (or the lengths of its answers) go before the specification's, where it has them.
        use_their_osl: bool,
    },
    /// Random words, with the lengths and the shared beginnings of a trace.
    Trace(Arc<[TraceRequest]>),
}

/// Beginnings that prompts share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Its length, tokens; part of the prompt's.
    pub n_tokens: u32,
    /// How many different ones there are; each prompt takes one at random.
    pub n_pool: u32,
}

/// Conversations: each answer is sent back as history with the next question.
#[derive(Debug, Clone, PartialEq)]
pub struct Turns {
    /// Requests of a conversation at least.
    pub min: u32,
    /// Requests of a conversation at most; each number between them is equally likely.
    pub max: u32,
    /// From the end of an answer to when the next question is due, milliseconds.
    pub think_ms: Lengths,
}

/// One client's part of a load that several carry: the requests (conversations) whose number leaves the remainder `index` when divided
/// by `n`, and an equal part of the cap. All clients together send exactly what one alone would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Share {
    /// Which client, from 0.
    pub index: u32,
    /// Clients.
    pub n: u32,
}

impl Share {
    /// Everything.
    pub const WHOLE: Share = Share { index: 0, n: 1 };

    /// Whether request `number` of a phase is this client's.
    #[must_use]
    pub const fn has(self, number: u32) -> bool {
        number % self.n == self.index
    }

    /// How many of the first `total` are this client's.
    #[must_use]
    pub const fn of(self, total: u32) -> u32 {
        total / self.n + if self.index < total % self.n { 1 } else { 0 }
    }

    fn of_cap(self, cap: usize) -> usize {
        let (index, n) = (self.index as usize, self.n as usize);
        cap / n + usize::from(index < cap % n)
    }
}

/// A load run.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadSpec {
    /// The server.
    pub target: Target,
    /// Model name as the server knows it.
    pub model: String,
    /// When requests are sent, and how many: by all clients together.
    pub load: Load,
    /// Which of them this client sends.
    pub share: Share,
    /// Where prompts come from.
    pub prompts: Prompts,
    /// Prompt length, tokens; of each user message in conversations. Prompts of the user's own and traces have theirs.
    pub isl: Lengths,
    /// Output length, tokens. Traces have theirs.
    pub osl: Lengths,
    /// Conversations of several turns; `load` counts these then. `None` = single requests.
    pub turns: Option<Turns>,
    /// Whether responses are streamed.
    pub streaming: bool,
    /// Makes prompts and random schedules repeatable.
    pub seed: u64,
    /// Whether the prompt is made shorter by what the chat template adds, so that the server's `usage.prompt_tokens` is `isl`.
    pub isl_includes_template: bool,
    /// Whether streamed responses are to end with `usage` (`stream_options.include_usage`).
    pub include_usage: bool,
    /// Further fields of each request's body, after ours; one of the same name replaces ours in its place.
    pub extra_inputs: Map<String, Value>,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// Sent as bearer token; never shown.
    pub api_key: Option<ApiKey>,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// Sizes beyond which a response is refused.
    pub limits: Limits,
    /// Connections at most, for loads without a cap.
    pub max_connections: u32,
    /// Whom `https://` trusts.
    pub tls: TlsOptions,
    /// Whether to use the kernel's stamps where it has them.
    pub kernel_stamps: bool,
    /// Threads that receive, each with its share of the connections; `None` = as many as the load and the machine's cores suggest.
    pub receive_threads: Option<u32>,
    /// What is kept beyond the records.
    pub keep: Keep,
}

/// What a run keeps beyond its records, at the cost of memory and of decoding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// Bodies and events of the measured requests, as they were on the wire; not those of conversations.
    pub exchanges: bool,
    /// The client's own counts of prompt and answer ([`tandem_metrics::TextTokens`]), whatever the server says.
    pub text_tokens: bool,
}

impl LoadSpec {
    /// The recipe's load on `url`: a closed loop with a warm-up of twice the concurrency, streamed, seed 100, everything else at its default.
    ///
    /// # Errors
    /// [`LoadError::Url`].
    pub fn closed_loop(url: &str, model: &str, concurrency: u32, n_requests: u32, isl: u32, osl: u32) -> Result<Self, LoadError> {
        Ok(Self {
            target: Target::parse(url)?,
            model: model.to_owned(),
            load: Load::new(Arrivals::ClosedLoop, Some(concurrency as usize), concurrency.saturating_mul(2), n_requests),
            share: Share::WHOLE,
            prompts: Prompts::Synthetic { prefix: None },
            isl: Lengths::Fixed(isl),
            osl: Lengths::Fixed(osl),
            turns: None,
            streaming: true,
            seed: 100,
            isl_includes_template: false,
            include_usage: true,
            extra_inputs: Map::new(),
            headers: Vec::new(),
            api_key: None,
            timeouts: Timeouts::DEFAULT,
            limits: Limits::DEFAULT,
            max_connections: 4096,
            tls: TlsOptions::default(),
            kernel_stamps: true,
            receive_threads: None,
            keep: Keep::default(),
        })
    }

    /// Requests of the run, warm-up included; with conversations of varying length, about so many. What `duration` cuts off is counted.
    #[must_use]
    pub fn n_total(&self) -> u64 {
        let n = u64::from(self.share.of(self.load.n_warmup)) + u64::from(self.share.of(self.load.n_requests));
        self.turns.as_ref().map_or(n, |turns| n * (u64::from(turns.min) + u64::from(turns.max)) / 2)
    }

    /// This client's part of the cap, if there is one.
    #[must_use]
    pub(crate) fn own_cap(&self) -> Option<usize> {
        self.load.max_in_flight.map(|cap| self.share.of_cap(cap))
    }

    /// What this client's pacer paces. A closed loop's counts are split; a schedule is the whole load's, from which each client takes
    /// its requests.
    #[must_use]
    pub(crate) fn own_load(&self) -> Load {
        // A load without a cap is capped by the connections that may be opened.
        let load = Load { max_in_flight: Some(self.n_slots()), ..self.load.clone() };
        if load.arrivals == Arrivals::ClosedLoop {
            Load { n_warmup: self.share.of(load.n_warmup), n_requests: self.share.of(load.n_requests), ..load }
        } else {
            load
        }
    }

    /// Requests in flight at most: the load's cap, or what may be connected.
    #[must_use]
    pub(crate) fn n_slots(&self) -> usize {
        self.own_cap().unwrap_or(usize::MAX).min(self.max_connections as usize)
    }

    /// Threads that receive. One carries about 150,000 chunks a second, so by default there is one for each 1,024
    /// requests in flight, and a quarter of the cores at most: the rest is for decoding and for the kernel.
    #[must_use]
    pub fn n_receive_threads(&self) -> usize {
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        let by_load = self.own_cap().unwrap_or(1).div_ceil(REQUESTS_PER_THREAD);
        let wanted = self.receive_threads.map_or(by_load.min(n_cores / 4).min(MAX_DEFAULT_THREADS), |n| n as usize);
        wanted.clamp(1, self.n_slots().max(1))
    }

    /// Connections that are open before the first request.
    #[must_use]
    pub(crate) fn n_open_first(&self) -> usize {
        let wanted = self.own_cap().unwrap_or(16).min(self.max_connections as usize);
        usize::try_from(self.n_total()).unwrap_or(usize::MAX).min(wanted)
    }

    /// Checks what can be checked without a server.
    ///
    /// # Errors
    /// [`LoadError::Spec`] naming the field.
    pub fn check(&self) -> Result<(), LoadError> {
        let bad = |field, reason: &str| Err(LoadError::Spec { field, reason: reason.to_owned() });
        if self.model.is_empty() {
            return bad("model", "is empty");
        }
        for (field, lengths) in [("isl", &self.isl), ("osl", &self.osl)] {
            lengths.check().map_err(|reason| LoadError::Spec { field, reason })?;
        }
        self.check_prompts()?;
        if self.share.index >= self.share.n {
            return bad("clients", "there are fewer");
        }
        let n = self.share.n;
        if n > 1 && (self.load.n_requests < n || self.load.max_in_flight.is_some_and(|cap| cap < n as usize)) {
            return bad("clients", "there are more clients than requests, or than requests in flight");
        }
        if self.load.n_requests == 0 {
            return bad("n_requests", "must be at least 1");
        }
        if self.load.n_warmup.checked_add(self.load.n_requests).is_none() {
            return bad("n_requests", "is too large");
        }
        if self.keep.exchanges && self.turns.is_some() {
            return bad("keep", "the bodies of conversations are not kept");
        }
        if self.load.max_in_flight == Some(0) {
            return bad("concurrency", "must be at least 1");
        }
        if self.load.arrivals == Arrivals::ClosedLoop && self.load.max_in_flight.is_none() {
            return bad("concurrency", "a closed loop needs one");
        }
        if self.max_connections == 0
            || self.load.max_in_flight.is_some_and(|n| n > MAX_CONNECTIONS)
            || self.max_connections as usize > MAX_CONNECTIONS
        {
            return bad("concurrency", "must be between 1 and 60000: one address has no more ports");
        }
        let positive = |x: f64| x.is_finite() && x > 0.0;
        match &self.load.arrivals {
            Arrivals::Constant { rate } | Arrivals::Gamma { rate, .. } if !positive(*rate) => bad("rate", "must be positive"),
            Arrivals::Gamma { shape, .. } if !positive(*shape) => bad("shape", "must be positive"),
            Arrivals::Trace(times) if !times.is_sorted() => bad("trace", "times must ascend"),
            _ => self.check_timeouts(),
        }
    }

    fn check_prompts(&self) -> Result<(), LoadError> {
        let bad = |field, reason: &str| Err(LoadError::Spec { field, reason: reason.to_owned() });
        match &self.prompts {
            Prompts::Synthetic { prefix: Some(prefix) } if prefix.n_tokens == 0 || prefix.n_pool == 0 => {
                return bad("prefix", "its length and the size of its pool must be at least 1");
            }
            Prompts::Synthetic { prefix: Some(prefix) } if self.isl.fixed().is_some_and(|isl| isl <= prefix.n_tokens) => {
                return bad("prefix", "must be shorter than the prompt");
            }
            Prompts::Given { prompts, .. } if prompts.is_empty() => return bad("prompts", "there is none"),
            Prompts::Trace(requests) if self.n_total() > requests.len() as u64 => return bad("trace", "has fewer requests than asked for"),
            Prompts::Trace(_) if self.turns.is_some() => return bad("turns", "a trace has none"),
            _ => {}
        }
        let Some(turns) = &self.turns else {
            return if self.load.n_turns_max == 1 { Ok(()) } else { bad("turns", "are not said") };
        };
        if turns.min == 0 || turns.min > turns.max || turns.max != self.load.n_turns_max {
            return bad("turns", "must be at least 1, and the fewest not above the most");
        }
        if turns.think_ms != Lengths::Fixed(0) {
            turns.think_ms.check().map_err(|reason| LoadError::Spec { field: "think time", reason })?;
        }
        if (u64::from(self.load.n_warmup) + u64::from(self.load.n_requests)) * u64::from(turns.max) > u64::from(u32::MAX) {
            return bad("turns", "make too many requests");
        }
        Ok(())
    }

    fn check_timeouts(&self) -> Result<(), LoadError> {
        let t = &self.timeouts;
        let named = [
            ("connect timeout", t.connect),
            ("request timeout", t.request),
            ("no-progress timeout", t.no_progress),
            ("grace time", t.grace),
        ];
        for (field, value) in named {
            let reason = if value > LONGEST {
                "must be at most a year"
            } else if value < Nanos::from_millis(1) && field != "grace time" {
                "must be at least 1 ms"
            } else {
                continue;
            };
            return Err(LoadError::Spec { field, reason: reason.into() });
        }
        Ok(())
    }
}

/// Requests in flight that one receive thread carries before a second is started.
const REQUESTS_PER_THREAD: usize = 1024;
/// Receive threads at most when the user does not say.
const MAX_DEFAULT_THREADS: usize = 8;
/// No deadline is longer, so that adding one to a time cannot overflow.
const LONGEST: Nanos = Nanos::from_millis(366 * 24 * 3_600_000);
/// One address and port has fewer local ports than this towards it.
const MAX_CONNECTIONS: usize = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_load_are_disjoint_and_make_it_whole() {
        for n in 1..5 {
            for total in 0..13 {
                let shares: Vec<_> = (0..n).map(|index| Share { index, n }).collect();
                assert_eq!(shares.iter().map(|s| s.of(total)).sum::<u32>(), total);
                assert_eq!(shares.iter().map(|s| s.of_cap(total as usize)).sum::<usize>(), total as usize);
                for share in shares {
                    assert_eq!((0..total).filter(|i| share.has(*i)).count(), share.of(total) as usize);
                }
            }
        }
    }

    #[test]
    fn impossible_fields_are_refused_by_name() {
        let spec = || LoadSpec::closed_loop("h", "m", 2, 10, 8, 8).unwrap();
        spec().check().unwrap();
        type Spoil = fn(&mut LoadSpec);
        let cases: [(&str, Spoil); 20] = [
            ("model", |s| s.model.clear()),
            ("clients", |s| s.share = Share { index: 0, n: 3 }),
            ("clients", |s| s.share = Share { index: 2, n: 2 }),
            ("isl", |s| s.isl = Lengths::Fixed(0)),
            ("osl", |s| s.osl = Lengths::Uniform(3, 2)),
            ("n_requests", |s| s.load.n_requests = 0),
            ("n_requests", |s| s.load.n_warmup = u32::MAX),
            ("concurrency", |s| s.load.max_in_flight = Some(0)),
            ("concurrency", |s| s.load.max_in_flight = None),
            ("rate", |s| s.load.arrivals = Arrivals::Constant { rate: f64::NAN }),
            ("grace time", |s| s.timeouts.grace = Nanos(u64::MAX)),
            ("request timeout", |s| s.timeouts.request = Nanos::ZERO),
            ("prefix", |s| s.prompts = Prompts::Synthetic { prefix: Some(Prefix { n_tokens: 8, n_pool: 1 }) }),
            ("prompts", |s| s.prompts = Prompts::Given { prompts: Arc::new([]), use_their_osl: true }),
            ("trace", |s| s.prompts = Prompts::Trace(Arc::new([]))),
            ("turns", |s| s.turns = Some(Turns { min: 2, max: 2, think_ms: Lengths::Fixed(0) })),
            ("turns", |s| s.load.n_turns_max = 2),
            ("keep", |s| {
                (s.keep.exchanges, s.load.n_turns_max) = (true, 2);
                s.turns = Some(Turns { min: 2, max: 2, think_ms: Lengths::Fixed(0) });
            }),
            ("shape", |s| s.load.arrivals = Arrivals::Gamma { rate: 1.0, shape: 0.0 }),
            ("trace", |s| s.load.arrivals = Arrivals::Trace(vec![Nanos(2), Nanos(1)])),
        ];
        for (field, spoil) in cases {
            let mut s = spec();
            spoil(&mut s);
            assert!(matches!(s.check(), Err(LoadError::Spec { field: f, .. }) if f == field), "{field}");
        }
    }
}
