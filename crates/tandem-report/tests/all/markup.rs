//! A strict little reader of the page: every element closed in order, every attribute one that the page is known to use.

use std::collections::BTreeSet;

const VOID: [&str; 3] = ["meta", "link", "!DOCTYPE"];
/// Content of these is not markup.
const RAW: [&str; 2] = ["style", "script"];

/// Everything the page is built from.
#[derive(Debug, Default)]
pub(crate) struct Markup {
    pub(crate) tags: BTreeSet<String>,
    pub(crate) attributes: BTreeSet<String>,
    pub(crate) ids: BTreeSet<String>,
    pub(crate) texts: String,
}

impl Markup {
    /// Panics where a browser would have to guess.
    pub(crate) fn read(page: &str) -> Markup {
        let mut markup = Markup::default();
        let mut open: Vec<String> = Vec::new();
        let mut rest = page;
        while let Some(at) = rest.find('<') {
            markup.texts.push_str(&rest[..at]);
            let end = end_of_tag(&rest[at..]);
            let tag = &rest[at + 1..at + end];
            rest = &rest[at + end + 1..];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name), "closed in the wrong order before: {}", start(rest));
                continue;
            }
            let name: String = tag.chars().take_while(|c| !c.is_whitespace() && *c != '/').collect();
            markup.take_attributes(&tag[name.len()..]);
            markup.tags.insert(name.clone());
            if RAW.contains(&name.as_str()) {
                let close = format!("</{name}>");
                rest = &rest[rest.find(&close).expect("raw content is closed") + close.len()..];
            } else if !tag.ends_with('/') && !VOID.contains(&name.as_str()) {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "never closed: {open:?}");
        markup
    }

    fn take_attributes(&mut self, text: &str) {
        let mut rest = text.trim_end_matches('/').trim();
        while !rest.is_empty() {
            let end = rest.find(['=', ' ']).unwrap_or(rest.len());
            let name = &rest[..end];
            self.attributes.insert(name.to_owned());
            rest = rest[end..].trim_start();
            if let Some(quoted) = rest.strip_prefix(['=']) {
                let quote = quoted.chars().next().filter(|c| "\"'".contains(*c)).expect("a value is quoted");
                let quoted = &quoted[1..];
                let close = quoted.find(quote).expect("an attribute is closed");
                if name == "id" {
                    assert!(self.ids.insert(quoted[..close].to_owned()), "two elements have the id {}", &quoted[..close]);
                }
                rest = quoted[close + 1..].trim_start();
            }
        }
    }
}

/// Where the tag ends, quoted attributes aside.
fn end_of_tag(text: &str) -> usize {
    let mut quote = None;
    for (i, c) in text.char_indices() {
        match (c, quote) {
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            ('>', None) => return i,
            _ => {}
        }
    }
    panic!("a tag that never ends: {}", start(text));
}

fn start(text: &str) -> String {
    text.chars().take(80).collect()
}

#[test]
#[should_panic(expected = "closed in the wrong order")]
fn crossed_elements_are_noticed() {
    Markup::read("<p><b>x</p></b>");
}
