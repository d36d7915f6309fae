//! Text from files on its way into HTML and Markdown. Nothing reaches a page but through here or as a number.

use std::fmt::{self, Display, Formatter, Write};

/// Text that is safe as HTML content and within quoted attributes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(visible(c))?,
            }
        }
        Ok(())
    }
}

/// JSON that is safe within an attribute in single quotes: it is full of double ones, which stay as they are.
pub(crate) fn in_single_quotes(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '"' => out.push('"'),
            c => out.push_str(&Escaped(c.encode_utf8(&mut [0; 4])).to_string()),
        }
    }
    out
}

/// Shorthand in format strings.
pub(crate) fn esc(text: &str) -> Escaped<'_> {
    Escaped(text)
}

/// Text that means itself in Markdown, on one line.
pub(crate) fn md(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '\\' | '|' | '`' | '*' | '_' | '[' | ']' | '#' | '~' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(visible(c)),
        }
    }
    out
}

/// Control characters could hide or reorder what a reader sees.
fn visible(c: char) -> char {
    let reorders = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
    if reorders || (c.is_control() && c != '\n' && c != '\t') { '\u{fffd}' } else { c }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_open_a_tag_or_close_an_attribute() {
        let text = esc("<script>alert('x')</script>\" onload=\"y & z").to_string();
        assert_eq!(text, "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot; onload=&quot;y &amp; z");
    }

    #[test]
    fn json_cannot_leave_its_single_quotes() {
        assert_eq!(in_single_quotes("{\"a\": \"b' onload='<&\"}"), "{\"a\": \"b&#39; onload=&#39;&lt;&amp;\"}");
    }

    #[test]
    fn what_hides_or_reorders_text_is_made_visible() {
        assert_eq!(esc("a\u{202e}b\u{0}c\nd").to_string(), "a\u{fffd}b\u{fffd}c\nd");
    }

    #[test]
    fn markdown_tables_and_spans_stay_whole() {
        assert_eq!(md("a|b\n`c` <d> [e](f)"), r"a\|b \`c\` &lt;d> \[e\](f)");
    }
}
