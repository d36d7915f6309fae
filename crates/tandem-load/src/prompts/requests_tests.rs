//! Tests of `requests`: what a run sends, without a server.

use super::super::files::parse_prompts;
use super::super::texts::ByteTexts;
use super::super::trace::parse_trace;
use super::*;

fn requests(change: impl FnOnce(&mut LoadSpec)) -> (Vec<String>, u32) {
    let mut spec = LoadSpec::closed_loop("h", "m", 2, 50, 12, 4).unwrap();
    change(&mut spec);
    let n_repeated = Arc::new(AtomicU32::new(0));
    let texts = Arc::new(ByteTexts { template_tokens: 3 });
    let all = Requests::new(&spec, texts, n_repeated.clone(), Arc::default()).unwrap().map(|b| String::from_utf8(b).unwrap()).collect();
    (all, n_repeated.load(Ordering::Relaxed))
}

fn prompt(request: &str) -> String {
    let body: serde_json::Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
    body["messages"][0]["content"].as_str().unwrap().to_owned()
}

#[test]
fn prompts_are_all_different_and_of_the_asked_length() {
    let (all, n_repeated) = requests(|_| {});
    let prompts: HashSet<_> = all.iter().map(|r| prompt(r)).collect();
    assert_eq!((all.len(), prompts.len(), n_repeated), (54, 54, 0));
    assert!(prompts.iter().all(|p| p.len() == 12));
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_warmup_does_not_shift_measured_prompts() {
    assert_eq!(requests(|_| {}), requests(|_| {}));
    let (with, _) = requests(|_| {});
    let (without, _) = requests(|s| s.load.n_warmup = 0);
    assert_eq!(with[4..], without[..]);
    let (other, _) = requests(|s| s.seed = 101);
    assert!(with.iter().zip(&other).all(|(a, b)| prompt(a) != prompt(b)));
}

#[test]
fn the_template_is_subtracted_when_asked() {
    let (all, _) = requests(|s| s.isl_includes_template = true);
    assert!(all.iter().all(|r| prompt(r).len() == 9));
    let spec = LoadSpec { isl_includes_template: true, ..LoadSpec::closed_loop("h", "m", 1, 1, 3, 1).unwrap() };
    let result = Requests::new(&spec, Arc::new(ByteTexts { template_tokens: 3 }), Arc::default(), Arc::default());
    assert!(matches!(result.err(), Some(LoadError::Prompts { isl: 3, .. })));
}

#[test]
fn prompts_too_short_to_be_all_different_are_counted() {
    let (all, n_repeated) = requests(|s| s.isl = Lengths::Fixed(1));
    let prompts: HashSet<_> = all.iter().map(|r| prompt(r)).collect();
    assert_eq!(prompts.len() + n_repeated as usize, all.len());
    assert!(n_repeated >= 28);
}

fn osl(request: &str) -> u64 {
    let body: serde_json::Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body["max_tokens"], body["min_tokens"]);
    body["max_tokens"].as_u64().unwrap()
}

#[test]
fn lengths_vary_as_asked_and_are_noted() {
    let mut spec = LoadSpec::closed_loop("h", "m", 1, 200, 1, 1).unwrap();
    (spec.isl, spec.osl) = (Lengths::Uniform(20, 40), Lengths::Uniform(5, 9));
    spec.isl_includes_template = true;
    let mut requests = Requests::new(&spec, Arc::new(ByteTexts { template_tokens: 3 }), Arc::default(), Arc::default()).unwrap();
    let all: Vec<_> = requests.by_ref().map(|b| String::from_utf8(b).unwrap()).collect();
    let lengths: HashSet<_> = all.iter().map(|r| prompt(r).len()).collect();
    assert_eq!((lengths.len(), *lengths.iter().min().unwrap(), *lengths.iter().max().unwrap()), (21, 17, 37));
    for (request, made) in all.iter().zip(requests.into_made()) {
        let n = u32::try_from(prompt(request).len()).unwrap() + 3;
        assert_eq!((made.isl, made.isl_at_server, u64::from(made.osl)), (Some(n), Some(n), osl(request)));
    }
}

#[test]
fn prompts_share_the_prefixes_of_the_pool_and_nothing_else() {
    let (all, n_repeated) = requests(|s| {
        s.isl = Lengths::Fixed(40);
        s.prompts = Prompts::Synthetic { prefix: Some(Prefix { n_tokens: 30, n_pool: 3 }) };
    });
    let prompts: Vec<_> = all.iter().map(|r| prompt(r)).collect();
    assert!(prompts.iter().all(|p| p.len() == 40) && n_repeated == 0);
    let prefixes: HashSet<_> = prompts.iter().map(|p| &p[..30]).collect();
    let tails: HashSet<_> = prompts.iter().map(|p| &p[30..]).collect();
    assert_eq!((prefixes.len(), tails.len()), (3, prompts.len()));
}

#[test]
fn a_trace_gives_lengths_and_shared_beginnings() {
    let line = |t: u32, isl: u32, ids: &str| {
        format!("{{\"timestamp\": {t}, \"input_length\": {isl}, \"output_length\": {}, \"hash_ids\": [{ids}]}}\n", t + 1)
    };
    let text = line(0, 1500, "7, 8, 9") + &line(1, 1200, "7, 8, 5") + &line(2, 600, "7, 6") + &line(3, 700, "");
    let trace: Arc<[_]> = parse_trace(&text, 1.0).unwrap().into();
    let (all, _) = requests(|s| {
        (s.load.n_warmup, s.load.n_requests) = (1, 3);
        s.prompts = Prompts::Trace(trace);
        s.isl_includes_template = true;
    });
    let p: Vec<_> = all.iter().map(|r| prompt(r)).collect();
    assert_eq!(p.iter().map(String::len).collect::<Vec<_>>(), [1497, 1197, 597, 697]);
    assert_eq!(all.iter().map(|r| osl(r)).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(p[0][..1024], p[1][..1024]);
    assert_ne!(p[0][1024..1197], p[1][1024..1197]);
    assert_eq!(p[0][..512], p[2][..512]);
    assert_ne!(p[0][512..597], p[2][512..597]);
    assert_ne!(p[0][..100], p[3][..100]);
}

#[test]
fn given_prompts_go_round_and_their_lengths_are_counted() {
    let text = r#"[{"conversations": [{"from": "human", "value": "question"}, {"from": "gpt", "value": "an answer"}]}, {"conversations": [{"from": "human", "value": "other"}]}]"#;
    let prompts: Arc<[_]> = parse_prompts(text).unwrap().into();
    for (use_their_osl, wanted) in [(true, [9, 4, 9]), (false, [4, 4, 4])] {
        let (all, n_repeated) = requests(|s| {
            (s.load.n_warmup, s.load.n_requests) = (0, 3);
            s.prompts = Prompts::Given { prompts: prompts.clone(), use_their_osl };
        });
        assert_eq!(all.iter().map(|r| prompt(r)).collect::<Vec<_>>(), ["question", "other", "question"]);
        assert_eq!((all.iter().map(|r| osl(r)).collect::<Vec<_>>(), n_repeated), (wanted.to_vec(), 1));
    }
}

#[test]
fn payloads_are_what_is_sent() {
    let mut spec = LoadSpec::closed_loop("h", "m", 2, 5, 30, 4).unwrap();
    spec.isl = Lengths::Uniform(20, 40);
    let texts = Arc::new(ByteTexts { template_tokens: 0 });
    let sent = Requests::new(&spec, texts.clone(), Arc::default(), Arc::default()).unwrap().skip(4);
    let sent: Vec<serde_json::Value> =
        sent.map(|r| serde_json::from_str(String::from_utf8(r).unwrap().split_once("\r\n\r\n").unwrap().1).unwrap()).collect();
    assert_eq!(payloads(&spec, texts, 99).unwrap(), sent);
}
