//! The load generator against the paced server, whose log says what was really sent.

use std::collections::HashMap;
use std::sync::Arc;

use tandem_load::paced::{Accuracy, PacedConfig, PacedServer};
use tandem_load::{ByteTexts, LoadSpec, NoProgress, StopSignal, run};
use tandem_plan::Nanos;

#[test]
fn records_agree_with_the_servers_log() {
    let config = PacedConfig { ttft: Nanos::from_millis(5), itl: Nanos::from_millis(1), tokens_per_chunk: 2, n_prompt: 16 };
    let server = PacedServer::start(config).unwrap();
    let spec = LoadSpec::closed_loop(&server.url(), "m", 8, 40, 16, 9).unwrap();
    let report = run(&spec, Arc::new(ByteTexts { template_tokens: 0 }), &mut NoProgress, &Arc::new(StopSignal::new())).unwrap();
    let log = server.stop().unwrap();
    assert_eq!((report.records.len(), log.emissions.len()), (56, 56));
    assert_eq!((log.n_busy_peak, log.n_connections), (8, 9), "eight slots, and one connection to see that the server is there");
    let emissions: HashMap<_, _> = log.emissions.iter().map(|e| (e.id.as_str(), e)).collect();
    for record in &report.records {
        let emission = emissions[record.x_request_id.as_str()];
        let at = |t| report.clock.from_other(&log.clock, t).0;
        assert!(record.outcome.is_ok() && emission.complete);
        assert_eq!((record.chunks.len(), emission.writes.len(), record.osl.server), (5, 5, Some(9)));
        assert!(record.start_ns <= at(emission.received));
        for (chunk, write) in record.chunks.iter().zip(&emission.writes) {
            // A kernel stamp is wall time mapped to the monotonic clock, which is good to well under this.
            assert!(chunk.at_ns + 1_000_000 >= at(*write));
        }
        let ttft = record.chunks.first().unwrap().at_ns - record.start_ns;
        assert!(ttft + 1_000_000 >= config.ttft.0, "{ttft}");
    }
    let accuracy = Accuracy::of(&report, &log);
    assert_eq!((accuracy.n_requests, accuracy.n_miscounted), (40, 0));
    assert!(accuracy.send.min >= 0.0 && accuracy.stamp.min >= -1e6 && accuracy.ttft.min >= -1e6);
}

#[test]
fn whole_responses_come_when_a_stream_would_have_ended() {
    let config = PacedConfig { ttft: Nanos::from_millis(5), itl: Nanos::from_millis(2), tokens_per_chunk: 1, n_prompt: 16 };
    let server = PacedServer::start(config).unwrap();
    let mut spec = LoadSpec::closed_loop(&server.url(), "m", 2, 4, 16, 6).unwrap();
    spec.streaming = false;
    let report = run(&spec, Arc::new(ByteTexts { template_tokens: 0 }), &mut NoProgress, &Arc::new(StopSignal::new())).unwrap();
    for record in &report.records {
        assert!(record.outcome.is_ok());
        assert_eq!((record.chunks.len(), record.osl.server), (1, Some(6)));
        assert!(record.end_ns - record.start_ns + 1_000_000 >= 15_000_000);
    }
}

#[test]
fn stamped_bytes_may_gather_and_others_are_read_at_once() {
    let config = PacedConfig { ttft: Nanos::from_millis(5), itl: Nanos::from_millis(2), tokens_per_chunk: 1, n_prompt: 16 };
    for kernel_stamps in [true, false] {
        let server = PacedServer::start(config).unwrap();
        let mut spec = LoadSpec::closed_loop(&server.url(), "m", 64, 256, 16, 20).unwrap();
        spec.kernel_stamps = kernel_stamps;
        let report = run(&spec, Arc::new(ByteTexts { template_tokens: 0 }), &mut NoProgress, &Arc::new(StopSignal::new())).unwrap();
        let accuracy = Accuracy::of(&report, &server.stop().unwrap());
        assert_eq!((accuracy.n_requests, accuracy.n_miscounted), (256, 0));
        let receive = &report.health.receive;
        let has_stamps = receive.stamp_source() == "kernel";
        assert!(kernel_stamps || !has_stamps);
        // Sixty-four streams write within two milliseconds, so reads follow each other closely.
        assert_eq!(receive.n_pauses > 0, has_stamps, "{} pauses in {} reads", receive.n_pauses, receive.n_reads);
    }
}
