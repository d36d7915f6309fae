//! Reads the usual chunk of a stream without a general JSON parser: decoding is most of what a chunk costs behind the kernel.
//!
//! [`scan`] understands objects of plain strings, plain numbers and literals in the shape of a chat or completion chunk with one
//! choice at most. Whatever else it meets (escapes, control characters, nested values, a field twice, errors, anything malformed)
//! it leaves to the parser in `json`, so it decides nothing on its own: where it answers, it answers as that parser would, which a
//! property test checks.

use std::borrow::Cow;

use memchr::memchr2;

use super::json::Output;

/// What `bytes` say, if they are a usual chunk.
pub(super) fn scan(bytes: &[u8]) -> Option<Output<'_>> {
    // Over all bytes at once, not string by string.
    if bytes.iter().any(|b| *b < b' ') {
        return None;
    }
    let mut cursor = Cursor { text: std::str::from_utf8(bytes).ok()?, at: 0 };
    let (mut output, mut seen) = (Output::default(), Seen::default());
    cursor.object(|cursor, key| match key {
        "choices" => {
            seen.once(0)?;
            cursor.choices(&mut output)
        }
        "usage" => {
            seen.once(1)?;
            cursor.usage(&mut output)
        }
        "object" => {
            seen.once(2)?;
            cursor.string_or_null().filter(|object| *object != Some("error")).map(|_| ())
        }
        "error" | "message" => None,
        _ => cursor.skip(),
    })?;
    cursor.spaces();
    (cursor.at == bytes.len()).then_some(output)
}

/// Fields that an object has had: the parser refuses a known one that comes twice.
#[derive(Default)]
struct Seen(u8);

impl Seen {
    fn once(&mut self, field: u8) -> Option<()> {
        let bit = 1 << field;
        let is_new = self.0 & bit == 0;
        self.0 |= bit;
        is_new.then_some(())
    }
}

/// A place in a text without control characters. Every method returns `None` for what it does not understand.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn spaces(&mut self) {
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
    }

    /// Steps over `byte`, with spaces before it; whether it was there.
    fn take(&mut self, byte: u8) -> bool {
        self.spaces();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Steps over `word`; whether it was there.
    fn word(&mut self, word: &[u8]) -> bool {
        let found = self.text.as_bytes()[self.at..].starts_with(word);
        self.at += if found { word.len() } else { 0 };
        found
    }

    fn null(&mut self) -> bool {
        self.spaces();
        self.word(b"null")
    }

    /// An object, with `member` called after each key's colon.
    fn object(&mut self, mut member: impl FnMut(&mut Self, &'a str) -> Option<()>) -> Option<()> {
        if !self.take(b'{') {
            return None;
        }
        if self.take(b'}') {
            return Some(());
        }
        loop {
            let key = self.string()?;
            if !self.take(b':') {
                return None;
            }
            member(self, key)?;
            if !self.take(b',') {
                return self.take(b'}').then_some(());
            }
        }
    }

    /// A string without escapes.
    fn string(&mut self) -> Option<&'a str> {
        if !self.take(b'"') {
            return None;
        }
        let from = self.at;
        let to = from + memchr2(b'"', b'\\', &self.text.as_bytes()[from..])?;
        self.at = to;
        if self.take(b'"') { self.text.get(from..to) } else { None }
    }

    fn string_or_null(&mut self) -> Option<Option<&'a str>> {
        if self.null() { Some(None) } else { self.string().map(Some) }
    }

    /// A count that surely fits.
    fn count_or_null(&mut self) -> Option<Option<u32>> {
        if self.null() {
            return Some(None);
        }
        let digits = self.digits()?;
        if digits.len() > 9 {
            return None;
        }
        digits.parse().ok().map(Some)
    }

    /// A whole number's digits, without leading zeros.
    fn digits(&mut self) -> Option<&'a str> {
        let from = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        let digits = self.text.get(from..self.at)?;
        (digits == "0" || !(digits.is_empty() || digits.starts_with('0'))).then_some(digits)
    }

    /// A plain value that nobody wants.
    fn skip(&mut self) -> Option<()> {
        self.spaces();
        match self.peek()? {
            b'"' => self.string().map(|_| ()),
            b'n' | b't' | b'f' => (self.word(b"null") || self.word(b"true") || self.word(b"false")).then_some(()),
            _ => {
                self.word(b"-");
                self.digits()?;
                if self.word(b".") {
                    let from = self.at;
                    while self.peek().is_some_and(|b| b.is_ascii_digit()) {
                        self.at += 1;
                    }
                    return (self.at > from).then_some(());
                }
                Some(())
            }
        }
    }

    fn usage(&mut self, output: &mut Output<'a>) -> Option<()> {
        if self.null() {
            return Some(());
        }
        let mut seen = Seen::default();
        self.object(|cursor, key| match key {
            "prompt_tokens" => {
                seen.once(0)?;
                output.prompt_tokens = cursor.count_or_null()?;
                Some(())
            }
            "completion_tokens" => {
                seen.once(1)?;
                output.completion_tokens = cursor.count_or_null()?;
                Some(())
            }
            _ => cursor.skip(),
        })
    }

    fn choices(&mut self, output: &mut Output<'a>) -> Option<()> {
        if self.null() {
            return Some(());
        }
        if !self.take(b'[') {
            return None;
        }
        if self.take(b']') {
            return Some(());
        }
        output.has_choice = true;
        let (mut seen, mut content, mut text) = (Seen::default(), None, None);
        self.object(|cursor, key| match key {
            "delta" => {
                seen.once(0)?;
                content = cursor.delta(output)?;
                Some(())
            }
            "text" => {
                seen.once(1)?;
                text = cursor.string_or_null()?;
                Some(())
            }
            "finish_reason" => {
                seen.once(2)?;
                output.finish_reason = cursor.string_or_null()?.map(Cow::Borrowed);
                Some(())
            }
            "message" => None,
            _ => cursor.skip(),
        })?;
        output.content = first(content, text);
        self.take(b']').then_some(())
    }

    /// The content of a delta; reasoning goes to `output`.
    fn delta(&mut self, output: &mut Output<'a>) -> Option<Option<&'a str>> {
        if self.null() {
            return Some(None);
        }
        let (mut seen, mut content, mut reasoning) = (Seen::default(), None, [None; 2]);
        self.object(|cursor, key| match key {
            "content" => {
                seen.once(0)?;
                content = cursor.string_or_null()?;
                Some(())
            }
            "reasoning_content" => {
                seen.once(1)?;
                reasoning[0] = cursor.string_or_null()?;
                Some(())
            }
            "reasoning" => {
                seen.once(2)?;
                reasoning[1] = cursor.string_or_null()?;
                Some(())
            }
            "tool_calls" => {
                seen.once(3)?;
                (cursor.null() || (cursor.take(b'[') && cursor.take(b']'))).then_some(())
            }
            _ => cursor.skip(),
        })?;
        output.reasoning = first(reasoning[0], reasoning[1]);
        Some(content)
    }
}

/// The first that is there and not empty.
fn first<'a>(a: Option<&'a str>, b: Option<&'a str>) -> Option<Cow<'a, str>> {
    [a, b].into_iter().flatten().find(|text| !text.is_empty()).map(Cow::Borrowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::json::parse_any;
    use super::*;

    const USUAL: [&str; 7] = [
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"paced","choices":[{"index":0,"delta":{"content":" tok"},"logprobs":null,"finish_reason":null}]}"#,
        r#"{"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning_content":null,"tool_calls":[]},"finish_reason":null,"stop_reason":null}],"usage":null}"#,
        r#"{"choices": [{"delta": {"reasoning": "hm 語"}, "finish_reason": null}], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": null}}"#,
        r#"{"id":"c","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":128,"completion_tokens":128,"total_tokens":256}}"#,
        r#"{"object":"text_completion","choices":[{"index":0,"text":"a","finish_reason":"length"}],"took":-1.50,"ok":true}"#,
        r#"{"choices":[{"delta":null,"finish_reason":"stop"}]}"#,
        r#"{"choices":null}"#,
    ];

    #[test]
    fn usual_chunks_are_scanned_and_read_as_the_parser_reads_them() {
        for chunk in USUAL {
            assert_eq!(scan(chunk.as_bytes()).as_ref(), parse_any(chunk.as_bytes()).ok().as_ref(), "{chunk}");
        }
    }

    #[test]
    fn what_is_unusual_is_left_to_the_parser() {
        for chunk in [
            r#"{"choices":[{"delta":{"content":"a\n"}}]}"#,
            r#"{"choices":[{"delta":{"content":"a"}},{"delta":{"content":"b"}}]}"#,
            r#"{"choices":[{"delta":{"content":"a","content":"b"}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#,
            r#"{"choices":[{"message":{"content":"a"}}]}"#,
            r#"{"choices":[{"delta":["a"]}]}"#,
            r#"{"error":"no"}"#,
            r#"{"object":"error"}"#,
            r#"{"usage":{"prompt_tokens":4294967296}}"#,
            r#"{"usage":{"prompt_tokens":01}}"#,
            r#"{"a":1e3}"#,
            r#"{"a":1.}"#,
            r#"{"a":-}"#,
            r#"{"a":tru}"#,
            "{\"a\":\"\t\"}",
            r#"{"choices":[]} x"#,
            r#"{"choices":[],}"#,
            "[]",
            "",
        ] {
            assert_eq!(scan(chunk.as_bytes()), None, "{chunk}");
        }
        assert_eq!(scan(b"{\"a\":\"\xff\"}"), None);
    }

    /// A value that is often right for its field, and sometimes not.
    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("null".to_owned()),
            Just("[]".to_owned()),
            Just("{}".to_owned()),
            Just("\"\"".to_owned()),
            Just("\"error\"".to_owned()),
            "\"[a-z \\\\n語]{0,3}\"",
            "-?[0-9]{1,11}",
            "[0-9]\\.[0-9]?",
            "tru?e|false",
        ]
    }

    /// An object with some of `keys` and others.
    fn object(keys: &'static [&'static str], of: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        let member = (proptest::sample::select(keys), of, " ?").prop_map(|(key, value, space)| format!("\"{key}\":{space}{value}"));
        proptest::collection::vec(member, 0..5).prop_map(|members| format!("{{{}}}", members.join(",")))
    }

    fn chunk() -> impl Strategy<Value = String> {
        let delta = object(&["content", "reasoning_content", "reasoning", "tool_calls", "role"], value());
        let choice = object(&["delta", "text", "finish_reason", "index", "message"], prop_oneof![2 => delta, 1 => value()]);
        let choices = proptest::collection::vec(choice, 0..3).prop_map(|choices| format!("[{}]", choices.join(",")));
        let usage = object(&["prompt_tokens", "completion_tokens", "total_tokens"], value());
        object(&["choices", "usage", "object", "id", "error", "message"], prop_oneof![3 => choices, 1 => usage, 1 => value()])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn an_answer_is_always_the_parsers(chunk in chunk()) {
            if let Some(output) = scan(chunk.as_bytes()) {
                prop_assert_eq!(Ok(output), parse_any(chunk.as_bytes()));
            }
        }

        #[test]
        fn damage_is_never_read_over(i in 0..USUAL.len(), at in 0usize..200, byte: u8, cut: bool) {
            let mut bytes = USUAL[i].as_bytes().to_vec();
            let at = at % bytes.len();
            if cut { bytes.truncate(at) } else { bytes[at] = byte };
            if let Some(output) = scan(&bytes) {
                prop_assert_eq!(Ok(output), parse_any(&bytes));
            }
        }
    }
}
