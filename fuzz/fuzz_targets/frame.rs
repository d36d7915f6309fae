//! Frames between frontend and workers: any bytes are messages or an error; a message survives being written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_wire::frame::{decode, encode};
use tandem_wire::worker::{FromWorker, ToWorker};

fn check<T: serde::Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) {
    if let Ok(Some((message, n))) = decode::<T>(bytes) {
        assert!(n <= bytes.len());
        let mut out = Vec::new();
        encode(&message, &mut out).expect("a message that came in one frame fits in one");
        assert!(matches!(decode::<T>(&out), Ok(Some((_, m))) if m == out.len()));
    }
}

fuzz_target!(|bytes: &[u8]| {
    check::<ToWorker>(bytes);
    check::<FromWorker>(bytes);
});
