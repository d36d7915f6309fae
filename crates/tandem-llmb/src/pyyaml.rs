//! Values as the YAML that Python's `yaml.dump(…, sort_keys=False)` writes: block style, lists not indented, quotes where needed.

use std::fmt::Write;

use serde_json::Value;

/// A mapping as a document.
#[must_use]
pub fn document(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, 0);
    out
}

fn write(out: &mut String, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                let _ = write!(out, "{pad}{}:", scalar(&Value::from(key.as_str())));
                after(out, value, indent, indent + 2);
            }
        }
        Value::Array(items) => {
            for item in items {
                let _ = write!(out, "{pad}-");
                match item {
                    // The first key stands behind the dash.
                    Value::Object(entries) if !entries.is_empty() => {
                        let mut inner = String::new();
                        write(&mut inner, item, indent + 2);
                        let _ = write!(out, " {}", inner.trim_start());
                    }
                    _ => after(out, item, indent + 2, indent + 2),
                }
            }
        }
        other => {
            let _ = writeln!(out, "{pad}{}", scalar(other));
        }
    }
}

/// What follows a colon or a dash.
fn after(out: &mut String, value: &Value, list_indent: usize, map_indent: usize) {
    match value {
        Value::Object(entries) if entries.is_empty() => out.push_str(" {}\n"),
        Value::Array(items) if items.is_empty() => out.push_str(" []\n"),
        Value::Object(_) => {
            out.push('\n');
            write(out, value, map_indent);
        }
        Value::Array(_) => {
            out.push('\n');
            write(out, value, list_indent);
        }
        other => {
            let _ = writeln!(out, " {}", scalar(other));
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::String(text) if text.contains(['\n', '\t']) || text.chars().any(char::is_control) => {
            // JSON's escapes are a subset of those of YAML's double quotes.
            Value::from(text.as_str()).to_string()
        }
        Value::String(text) if is_plain(text) => text.clone(),
        Value::String(text) => format!("'{}'", text.replace('\'', "''")),
        other => other.to_string(),
    }
}

/// Whether a reader takes the bare text for exactly this string.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 11] = ["", "~", "null", "true", "false", "yes", "no", "on", "off", "=", "<<"];
    const FIRST: &str = "-?:,[]{}#&*!|>'\"%@`";
    let lower = text.to_ascii_lowercase();
    let first = text.chars().next().unwrap_or(' ');
    let next_is_space = text.chars().nth(1).is_none_or(|c| c == ' ');
    // A dash, question mark or colon only means something before a space.
    let bad_first = FIRST.contains(first) && (next_is_space || !"-?:".contains(first));
    !(WORDS.contains(&lower.as_str())
        || bad_first
        || text.starts_with(' ')
        || text.ends_with([' ', ':'])
        || text.contains(": ")
        || text.contains(" #")
        || is_number_or_date(text))
}

/// YAML 1.1: integers with underscores or of base 60, floats, and dates.
fn is_number_or_date(text: &str) -> bool {
    let number = text.trim_start_matches(['+', '-']);
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let starts_with_digit = number.starts_with(|c: char| c.is_ascii_digit());
    let sexagesimal = number.contains(':') && starts_with_digit && number.split(':').all(|part| digits(part.trim_end_matches('.')));
    let float = match number.split_once('.') {
        Some((whole, rest)) => {
            let (fraction, exponent) = rest.split_once(['e', 'E']).map_or((rest, None), |(f, e)| (f, Some(e)));
            let signed = |e: &str| e.starts_with(['+', '-']) && digits(&e[1..]);
            (digits(whole) || whole.is_empty() && !fraction.is_empty())
                && (digits(fraction) || fraction.is_empty())
                && exponent.is_none_or(signed)
        }
        None => false,
    };
    let radix =
        |prefix: &str, of: fn(&char) -> bool| number.strip_prefix(prefix).is_some_and(|d| !d.is_empty() && d.chars().all(|c| of(&c)));
    let word = matches!(number.to_ascii_lowercase().as_str(), ".inf" | ".nan");
    let date = match text.splitn(3, '-').collect::<Vec<_>>().as_slice() {
        [year, month, rest] if year.len() == 4 && digits(year) && digits(month) => {
            let (day, time) = rest.split_once(['T', 't', ' ']).map_or((*rest, None), |(day, time)| (day, Some(time)));
            // A date alone has two digits for month and day.
            digits(day) && (time.is_some_and(|time| time.contains(':')) || time.is_none() && text.len() == 10)
        }
        _ => false,
    };
    digits(number) && starts_with_digit
        || float
        || word
        || sexagesimal
        || date
        || radix("0x", char::is_ascii_hexdigit)
        || radix("0b", |c| matches!(c, '0' | '1'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_look_as_python_writes_them() {
        let value = json!({"a": {"id": "1", "none": null, "version": "26.02", "fw": "0.6.1", "empty": {}, "flag": false, "n": 48},
            "b": {"images": ["nvcr.io#x/y:1", "z"], "time": "2026-11-24T03:30:15.955573", "odd": "it's: so", "time_limit": "1:00:00"},
            "c": [{"x": 1, "yes": "y"}], "d": "2026-11-24", "e": "- x", "f": "-x", "g": "a#b", "h": "1e3", "i": "1_0"});
        let text = "a:\n  id: '1'\n  none: null\n  version: '26.02'\n  fw: 0.6.1\n  empty: {}\n  flag: false\n  n: 48\n\
                    b:\n  images:\n  - nvcr.io#x/y:1\n  - z\n  time: '2026-11-24T03:30:15.955573'\n  odd: 'it''s: so'\n  time_limit: '1:00:00'\n\
                    c:\n- x: 1\n  'yes': y\nd: '2026-11-24'\ne: '- x'\nf: -x\ng: a#b\nh: 1e3\ni: '1_0'\n";
        assert_eq!(document(&value), text);
    }

    #[test]
    fn a_reader_gets_the_same_values_back() {
        let value = json!({"k: y": ["a\nb", "", " x", "null", "0x1f", "+1.5e+3", "#", "100%", "@x", "~", "ja"]});
        let back: Value = serde_saphyr::from_str(&document(&value)).unwrap();
        assert_eq!(back, value);
    }

    /// What PyYAML 6.0.3 wrote for each of these strings.
    #[test]
    fn strings_are_quoted_where_python_quotes_them() {
        let rows = [
            ("y", "y"),
            ("n", "n"),
            ("Y", "Y"),
            ("off", "'off'"),
            ("On", "'On'"),
            ("1", "'1'"),
            ("1.5", "'1.5'"),
            ("1e3", "1e3"),
            ("1.0e+3", "'1.0e+3'"),
            ("1:30", "'1:30'"),
            ("0x1F", "'0x1F'"),
            ("0b1", "'0b1'"),
            ("0o7", "0o7"),
            ("017", "'017'"),
            ("1_0", "'1_0'"),
            ("+1", "'+1'"),
            ("-1", "'-1'"),
            ("-", "'-'"),
            ("--", "--"),
            ("a: b", "'a: b'"),
            ("a:b", "a:b"),
            ("a #b", "'a #b'"),
            ("a#b", "a#b"),
            ("#a", "'#a'"),
            ("@a", "'@a'"),
            ("%a", "'%a'"),
            ("!a", "'!a'"),
            ("&a", "'&a'"),
            ("*a", "'*a'"),
            ("|", "'|'"),
            ("> x", "'> x'"),
            ("=", "'='"),
            ("<<", "'<<'"),
            ("~", "'~'"),
            ("null", "'null'"),
            ("Null", "'Null'"),
            ("", "''"),
            ("  x", "'  x'"),
            ("x ", "'x '"),
            ("x:", "'x:'"),
            ("2026-11-24", "'2026-11-24'"),
            ("2026-1-2", "2026-1-2"),
            ("2026-11-24T03:30:15.955573", "'2026-11-24T03:30:15.955573'"),
            ("10.0.0.1", "10.0.0.1"),
            ("0.6.1", "0.6.1"),
            ("26.02", "'26.02'"),
            ("nvcr.io#a/b:1", "nvcr.io#a/b:1"),
            (".5", "'.5'"),
            (".inf", "'.inf'"),
            ("-.inf", "'-.inf'"),
            (".nan", "'.nan'"),
            ("'a'", "'''a'''"),
            ("\"a\"", "'\"a\"'"),
            ("it's", "it's"),
            ("a,b", "a,b"),
            ("[a", "'[a'"),
            ("{a", "'{a'"),
            ("a]", "a]"),
            ("? a", "'? a'"),
            ("?a", "?a"),
            (": a", "': a'"),
            (":a", ":a"),
            ("`a", "'`a'"),
            ("1:00:00", "'1:00:00'"),
            ("12e03", "12e03"),
            ("0.1e5", "0.1e5"),
            ("9 9", "9 9"),
            ("TRUE", "'TRUE'"),
            ("e5", "e5"),
            ("a\tb", "\"a\\tb\""),
            ("é", "é"),
            ("-x", "-x"),
            ("- x", "'- x'"),
        ];
        for (text, written) in rows {
            assert_eq!(scalar(&Value::from(text)), written, "{text:?}");
        }
    }
}
