//! Text as Python writes it: float representation, `json.dumps`, `format(v, ",.2f")`.
//!
//! GenAI-Perf's files are compared byte by byte by their users, and they are written by Python.

use std::fmt::Write;

use serde_json::Value;

/// `repr(value)`: the shortest digits that read back as the same number, with an exponent below 1e-4 and from 1e16.
pub(crate) fn repr(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "NaN"
        } else if value > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("scientific notation has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent of a float is a small integer");
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits = mantissa.replace('.', "");
    match exponent {
        16.. | ..=-5 => exponential(sign, &digits, exponent),
        0..=15 => {
            let whole = usize::try_from(exponent).expect("it is 0 to 15") + 1;
            let padded = format!("{digits:0<whole$}");
            let fraction = if padded.len() > whole { &padded[whole..] } else { "0" };
            format!("{sign}{}.{fraction}", &padded[..whole])
        }
        -4..=-1 => {
            let zeros = usize::try_from(-exponent - 1).expect("it is 0 to 3");
            format!("{sign}0.{}{digits}", "0".repeat(zeros))
        }
    }
}

fn exponential(sign: &str, digits: &str, exponent: i32) -> String {
    let (first, rest) = digits.split_at(1);
    let point = if rest.is_empty() { "" } else { "." };
    let exponent_sign = if exponent < 0 { '-' } else { '+' };
    format!("{sign}{first}{point}{rest}e{exponent_sign}{:02}", exponent.abs())
}

/// `format(value, ".2f")`.
pub(crate) fn fixed2(value: f64) -> String {
    format!("{value:.2}")
}

/// `format(value, ",.2f")`: thousands separated by commas.
pub(crate) fn grouped2(value: f64) -> String {
    let plain = fixed2(value);
    let (sign, rest) = plain.strip_prefix('-').map_or(("", plain.as_str()), |rest| ("-", rest));
    let (whole, fraction) = rest.split_once('.').expect("two decimals were asked for");
    let mut text = String::from(sign);
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text.push('.');
    text.push_str(fraction);
    text
}

/// `json.dumps(value, indent=2)`, without a trailing newline.
pub(crate) fn dumps_indented(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value, 0);
    out
}

/// Appends `value`; `depth` is the level of indentation.
fn write_value(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => out.push_str(&repr(float)),
            _ => out.push_str(&number.to_string()),
        },
        Value::String(text) => write_string(out, text),
        Value::Array(items) => write_items(out, ['[', ']'], items.iter(), depth, write_value),
        Value::Object(map) => write_items(out, ['{', '}'], map.iter(), depth, |out, (key, item), depth| {
            write_string(out, key);
            out.push_str(": ");
            write_value(out, item, depth);
        }),
    }
}

fn write_items<T>(
    out: &mut String,
    [open, close]: [char; 2],
    items: impl ExactSizeIterator<Item = T>,
    depth: usize,
    write_item: impl Fn(&mut String, T, usize),
) {
    out.push(open);
    let is_empty = items.len() == 0;
    for (i, item) in items.enumerate() {
        new_line(out, i > 0, depth + 1);
        write_item(out, item, depth + 1);
    }
    if !is_empty {
        new_line(out, false, depth);
    }
    out.push(close);
}

fn new_line(out: &mut String, comma: bool, level: usize) {
    out.push_str(if comma { ",\n" } else { "\n" });
    out.extend(std::iter::repeat_n(' ', 2 * level));
}

/// A string with everything outside ASCII escaped, as `ensure_ascii` does.
fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    write!(out, "\\u{unit:04x}").expect("writing to a string cannot fail");
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Bits of floats, their `repr`, `format(v, ".2f")` and `format(v, ",.2f")`, written by `tests/data/generate.py`.
    #[test]
    fn floats_are_written_as_python_writes_them() {
        let table = include_str!("../../tests/data/python_floats.tsv");
        let mut n_rows = 0;
        for row in table.lines() {
            let columns: Vec<&str> = row.split('\t').collect();
            let value = f64::from_bits(u64::from_str_radix(columns[0], 16).unwrap());
            assert_eq!([repr(value), fixed2(value), grouped2(value)], columns[1..4], "bits {}", columns[0]);
            n_rows += 1;
        }
        assert!(n_rows > 500, "the table is there: {n_rows} rows");
    }

    #[test]
    fn json_is_laid_out_as_python_does_it() {
        let value = json!({"a": {"b": [1, 2.0], "empty": {}, "none": []}, "t": "\"\\\n\u{1}\u{7f}é😀/", "f": true, "n": null});
        let indented = "{\n  \"a\": {\n    \"b\": [\n      1,\n      2.0\n    ],\n    \"empty\": {},\n    \"none\": []\n  },\n  \
                        \"t\": \"\\\"\\\\\\n\\u0001\\u007f\\u00e9\\ud83d\\ude00/\",\n  \"f\": true,\n  \"n\": null\n}";
        assert_eq!(dumps_indented(&value), indented);
    }
}
