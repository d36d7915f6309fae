//! Rows as Python's `csv.writer` writes them: CRLF line ends, quotes only where needed.

/// Appends one row.
pub(crate) fn row<S: AsRef<str>>(out: &mut String, fields: impl IntoIterator<Item = S>) {
    for (i, field) in fields.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        let field = field.as_ref();
        if field.contains([',', '"', '\r', '\n']) {
            out.push('"');
            out.push_str(&field.replace('"', "\"\""));
            out.push('"');
        } else {
            out.push_str(field);
        }
    }
    out.push_str("\r\n");
}

#[cfg(test)]
mod tests {
    use super::row;

    #[test]
    fn only_fields_that_need_it_are_quoted() {
        let mut out = String::new();
        row(&mut out, ["a b", "1,080.26", "say \"x\"", ""]);
        row(&mut out, [""; 0]);
        assert_eq!(out, "a b,\"1,080.26\",\"say \"\"x\"\"\",\r\n\r\n");
    }
}
