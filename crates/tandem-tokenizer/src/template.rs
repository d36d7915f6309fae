//! Chat templates: from messages to the one string that the model was trained on.
//!
//! Jinja as the `transformers` library sets it up (blocks trimmed, loop controls, Python string
//! methods, `raise_exception`, `strftime_now`, its own `tojson`), so templates of checkpoints
//! work unchanged.

use std::fmt;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

use crate::error::TokenizerError;

/// One message of a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ChatMessage<'a> {
    /// `system`, `user`, `assistant` or what else the template knows.
    pub role: &'a str,
    /// The text.
    pub content: &'a str,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    origin: String,
}

const NAME: &str = "chat";

/// The turn structure of DeepSeek-V3: no blanks between markers, system text first, answers closed by EOS.
const DEEPSEEK: &str = "{{ bos_token }}\
{%- for message in messages if message.role == 'system' %}{{ message.content }}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endfor %}\
{%- for message in messages %}\
{%- if message.role == 'user' %}{{ '<｜User｜>' + message.content }}\
{%- elif message.role == 'assistant' %}{{ '<｜Assistant｜>' + message.content.split('</think>')[-1] + eos_token }}\
{%- elif message.role != 'system' %}{{ raise_exception('role ' + message.role + ' is not known; use system, user or assistant') }}\
{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}";

impl ChatTemplate {
    /// Compiles a template; `origin` is named in errors.
    ///
    /// # Errors
    /// [`TokenizerError::TemplateSyntax`].
    pub fn new(source: &str, origin: impl Into<String>) -> Result<Self, TokenizerError> {
        let origin = origin.into();
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        // Templates are the operator's own, but a slip in one must end.
        environment.set_recursion_limit(100);
        match environment.add_template_owned(NAME, source.to_owned()) {
            Ok(()) => Ok(Self { environment, origin }),
            Err(error) => Err(TokenizerError::TemplateSyntax { origin, reason: describe(&error) }),
        }
    }

    /// DeepSeek-V3's turns; the answer begins right after the assistant marker. The default for byte-level models.
    ///
    /// # Panics
    /// Never: the template is part of the tests.
    #[must_use]
    pub fn deepseek() -> Self {
        Self::new(DEEPSEEK, "built-in template deepseek").expect("the built-in template compiles")
    }

    /// The same, but the answer begins inside `<think>`, as DeepSeek-R1's does.
    ///
    /// # Panics
    /// Never: the template is part of the tests.
    #[must_use]
    pub fn deepseek_thinking() -> Self {
        let source = DEEPSEEK.replace("{{ '<｜Assistant｜>' }}", "{{ '<｜Assistant｜><think>' }}");
        Self::new(&source, "built-in template deepseek-thinking").expect("the built-in template compiles")
    }

    /// Where the template comes from.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Renders a chat. `bos` and `eos` are the texts of these tokens, empty when the model has none.
    ///
    /// # Errors
    /// [`TokenizerError::Messages`] when the template refuses the messages or fails on them.
    pub fn render(
        &self,
        messages: &[ChatMessage<'_>],
        add_generation_prompt: bool,
        bos: &str,
        eos: &str,
    ) -> Result<String, TokenizerError> {
        let values = context! { messages, add_generation_prompt, bos_token => bos, eos_token => eos };
        let template = self.environment.get_template(NAME).expect("added when it was built");
        template.render(values).map_err(|error| TokenizerError::Messages(describe(&error)))
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// What a user should read: the detail, and the line if it is not the template's own objection.
fn describe(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) if error.kind() != ErrorKind::InvalidOperation => format!("{}: {detail} (line {line})", error.kind()),
        _ => detail,
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}")))
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`: unlike Jinja's own filter, nothing is escaped for HTML.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted and without effect, as text is never escaped here.
    let _ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let bytes = match indent {
        Some(n) => dump(value, PrettyFormatter::with_indent(" ".repeat(n.min(32)).as_bytes())),
        None => dump(value, PythonFormatter),
    };
    bytes.map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}")))
}

fn dump(value: &Value, formatter: impl Formatter) -> Result<String, serde_json::Error> {
    let mut out = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))?;
    Ok(String::from_utf8(out).expect("JSON is text"))
}

/// `", "` and `": "`, as Python separates.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOS: &str = "<｜begin▁of▁sentence｜>";
    const EOS: &str = "<｜end▁of▁sentence｜>";

    fn message<'a>(role: &'a str, content: &'a str) -> ChatMessage<'a> {
        ChatMessage { role, content }
    }

    fn render(source: &str, messages: &[ChatMessage<'_>]) -> Result<String, TokenizerError> {
        ChatTemplate::new(source, "test").unwrap().render(messages, true, "<s>", "</s>")
    }

    #[test]
    fn deepseek_turns() {
        let chat = [
            message("system", "Be brief."),
            message("user", " Hi \n"),
            message("assistant", "<think>hm</think>Hello."),
            message("system", "In French."),
            message("user", "Again"),
        ];
        let t = ChatTemplate::deepseek();
        assert_eq!(
            t.render(&chat, true, BOS, EOS).unwrap(),
            format!("{BOS}Be brief.\n\nIn French.<｜User｜> Hi \n<｜Assistant｜>Hello.{EOS}<｜User｜>Again<｜Assistant｜>")
        );
        assert_eq!(t.render(&chat[1..2], false, BOS, EOS).unwrap(), format!("{BOS}<｜User｜> Hi \n"));
        let thinking = ChatTemplate::deepseek_thinking().render(&chat[1..2], true, BOS, EOS).unwrap();
        assert_eq!(thinking, format!("{BOS}<｜User｜> Hi \n<｜Assistant｜><think>"));
        let error = t.render(&[message("tool", "x")], true, BOS, EOS).unwrap_err().to_string();
        assert_eq!(error, "the chat template does not take these messages: role tool is not known; use system, user or assistant");
    }

    #[test]
    fn blocks_are_trimmed_and_python_methods_work() {
        let source = "{% for m in messages %}\n    {% if m['role'].startswith('u') %}\n{{ m['content'].strip() | upper }}\n    {% endif %}\n{% endfor %}\n{{ 'a,b'.split(',')[-1] }}\n";
        assert_eq!(render(source, &[message("user", " hi "), message("x", "no")]).unwrap(), "HI\nb");
    }

    #[test]
    fn loop_controls_and_exceptions_work() {
        let source = "{% for m in messages %}{% if m.role == 'skip' %}{% continue %}{% endif %}{% if m.role == 'bad' %}{{ raise_exception('no ' + m.role) }}{% endif %}{{ m.content }}{% endfor %}";
        assert_eq!(render(source, &[message("a", "1"), message("skip", "2"), message("b", "3")]).unwrap(), "13");
        assert!(matches!(render(source, &[message("bad", "")]), Err(TokenizerError::Messages(m)) if m == "no bad"));
    }

    #[test]
    fn tojson_is_pythons() {
        let chat = [message("user", "a<b> 'é' \"q\"")];
        assert_eq!(render("{{ messages | tojson }}", &chat).unwrap(), r#"[{"role": "user", "content": "a<b> 'é' \"q\""}]"#);
        assert_eq!(render("{{ [1, {}] | tojson(indent=2) }}", &chat).unwrap(), "[\n  1,\n  {}\n]");
    }

    #[test]
    fn the_date_follows_its_format() {
        let year = render("{{ strftime_now('%Y') }}", &[]).unwrap();
        assert!(year.len() == 4 && year.bytes().all(|b| b.is_ascii_digit()), "{year}");
    }

    #[test]
    fn syntax_errors_name_the_origin_and_the_line() {
        let error = ChatTemplate::new("a\n{% if %}", "dir/chat_template.jinja").unwrap_err().to_string();
        assert!(error.contains("dir/chat_template.jinja") && error.contains("line 2"), "{error}");
    }
}
