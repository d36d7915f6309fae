//! The reader of chat chunks and responses: any bytes are output or an error, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = tandem_load::decode::json::parse(bytes);
});
