//! Comma-separated values with quoted fields (RFC 4180), as text.

/// Splits text into records; quotes may hold commas, line breaks and doubled quotes.
pub(crate) fn records(text: &str) -> Vec<Vec<String>> {
    let (mut all, mut record, mut field) = (Vec::new(), Vec::new(), String::new());
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                field.push('"');
                chars.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => record.push(std::mem::take(&mut field)),
            '\r' if !quoted => {}
            '\n' if !quoted => {
                record.push(std::mem::take(&mut field));
                all.push(std::mem::take(&mut record));
            }
            c => field.push(c),
        }
    }
    if !field.is_empty() || !record.is_empty() {
        record.push(field);
        all.push(record);
    }
    all.retain(|r| r.iter().any(|f| !f.trim().is_empty()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_commas_line_breaks_and_quotes() {
        let text = "a,b\r\n\"x, \"\"y\"\"\",\"1\n2\"\n\nlast,\n";
        let expected: Vec<Vec<String>> = [["a", "b"], ["x, \"y\"", "1\n2"], ["last", ""]].map(|r| r.map(str::to_owned).to_vec()).to_vec();
        assert_eq!(records(text), expected);
    }
}
