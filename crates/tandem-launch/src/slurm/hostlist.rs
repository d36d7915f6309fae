//! Slurm's hostlists: `n[1-2,4],m07` names n1, n2, n4 and m07.

/// The hosts of a list, in its order; several brackets in one name multiply. `None` when it is malformed.
#[must_use]
pub fn expand(list: &str) -> Option<Vec<String>> {
    let mut hosts = Vec::new();
    for item in split_outside_brackets(list)? {
        hosts.extend(expand_one(item.trim())?);
    }
    Some(hosts)
}

fn split_outside_brackets(list: &str) -> Option<Vec<&str>> {
    let (mut items, mut start, mut depth) = (Vec::new(), 0, 0_u32);
    for (at, c) in list.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&list[start..]);
    items.retain(|item| !item.trim().is_empty());
    (depth == 0).then_some(items)
}

fn expand_one(item: &str) -> Option<Vec<String>> {
    let Some((prefix, rest)) = item.split_once('[') else { return Some(vec![item.to_owned()]) };
    let (ranges, rest) = rest.split_once(']')?;
    let tails = expand_one(rest)?;
    let mut hosts = Vec::new();
    for range in ranges.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let width = first.len();
        let (low, high): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        // A million nodes is a typing error, not a cluster.
        if high < low || high - low > 1_000_000 {
            return None;
        }
        for number in low..=high {
            hosts.extend(tails.iter().map(|tail| format!("{prefix}{number:0width$}{tail}")));
        }
    }
    Some(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_expand_as_scontrol_expands_them() {
        let check = |list: &str, expected: &[&str]| assert_eq!(expand(list).unwrap(), expected, "{list}");
        check("n1", &["n1"]);
        check("n[1-2,4]", &["n1", "n2", "n4"]);
        check("a,n[08-10],b2", &["a", "n08", "n09", "n10", "b2"]);
        check("r[1-2]n[1-2]-ib", &["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"]);
        check("", &[]);
        for bad in ["n[1", "n1]", "n[2-1]", "n[a-b]"] {
            assert_eq!(expand(bad), None, "{bad}");
        }
    }
}
