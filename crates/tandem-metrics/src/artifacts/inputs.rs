//! `inputs.json`: the requests as they were sent, in GenAI-Perf's layout.

use serde_json::{Value, json};

use crate::artifacts::python;

/// The file's text, from the request bodies in order.
#[must_use]
pub fn render<'a>(payloads: impl IntoIterator<Item = &'a Value>) -> String {
    let mut out = String::from("{\n  \"data\": [");
    let mut is_empty = true;
    for payload in payloads {
        out.push_str(if is_empty { "\n    " } else { ",\n    " });
        is_empty = false;
        let entry = python::dumps_indented(&json!({"payload": [payload]}));
        out.push_str(&entry.replace('\n', "\n    "));
    }
    out.push_str(if is_empty { "]\n}" } else { "\n  ]\n}" });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_like_one_dump_of_the_whole() {
        let payloads = [json!({"model": "m", "messages": [{"role": "user", "content": "a\nb"}], "stream": true}), json!({"model": "m"})];
        let whole = json!({"data": [{"payload": [payloads[0]]}, {"payload": [payloads[1]]}]});
        assert_eq!(render(&payloads), python::dumps_indented(&whole));
        assert_eq!(render([]), python::dumps_indented(&json!({"data": []})));
    }
}
