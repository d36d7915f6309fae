//! The frontend's request parser: any body is a request or an error with a status, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_wire::openai::{Api, GenerateRequest};

fuzz_target!(|body: &[u8]| {
    for api in [Api::Chat, Api::Completion] {
        let _ = GenerateRequest::parse(api, body);
    }
});
