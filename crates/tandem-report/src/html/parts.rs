//! Pieces of the page: tables, badges, figures. Text goes through `escape`, the rest is written here.

use std::fmt::Write;

use tandem_metrics::Verdict;

use crate::chart::{N_COLOURS, Picture};
use crate::escape::{esc, in_single_quotes};
use crate::numbers::number;

/// The page as far as it is written.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) out: String,
    /// Whether there are so many runs that each gets less detail.
    pub(super) is_crowded: bool,
    n_pictures: usize,
}

/// A table for people.
#[derive(Debug, Default, Clone)]
pub(super) struct Table {
    pub(super) caption: String,
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<Cell>>,
}

/// One cell; its text is safe.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    html: String,
    is_number: bool,
}

impl Cell {
    pub(super) fn text(text: &str) -> Self {
        Cell { html: esc(text).to_string(), is_number: false }
    }

    /// Text that is short enough to stay on one line.
    pub(super) fn label(text: &str) -> Self {
        Cell { html: format!("<span class=\"f\">{}</span>", esc(text)), is_number: false }
    }

    pub(super) fn code(text: &str) -> Self {
        Cell { html: format!("<code>{}</code>", esc(text)), is_number: false }
    }

    /// A number, or a dash where there is none.
    pub(super) fn number(value: Option<f64>) -> Self {
        Cell { html: value.map_or_else(|| "–".to_owned(), number), is_number: true }
    }

    /// A number with something to it, such as a sign.
    pub(super) fn figure(text: &str) -> Self {
        Cell { html: esc(text).to_string(), is_number: true }
    }

    pub(super) fn badge(verdict: Verdict) -> Self {
        Cell { html: badge(verdict), is_number: false }
    }

    /// Text in the colour of good or bad news.
    pub(super) fn toned(text: &str, tone: &str) -> Self {
        Cell { html: format!("<span class=\"f {tone}\">{}</span>", esc(text)), is_number: false }
    }
}

/// A verdict: never by colour alone.
pub(super) fn badge(verdict: Verdict) -> String {
    let sign = match verdict {
        Verdict::Valid => "✓",
        Verdict::Suspect => "!",
        Verdict::Invalid => "✕",
    };
    format!("<span class=\"badge {0}\"><span aria-hidden=\"true\">{sign}</span> {0}</span>", verdict.as_str())
}

impl Page {
    pub(super) fn new(is_crowded: bool) -> Self {
        Page { out: String::new(), is_crowded, n_pictures: 0 }
    }

    pub(super) fn heading(&mut self, level: u8, id: Option<&str>, text: &str) {
        let id = id.map_or_else(String::new, |id| format!(" id=\"{id}\""));
        let _ = write!(self.out, "<h{level}{id}>{}</h{level}>", esc(text));
    }

    pub(super) fn paragraph(&mut self, class: &str, text: &str) {
        let _ = write!(self.out, "<p class=\"{class}\">{}</p>", esc(text));
    }

    pub(super) fn list(&mut self, class: &str, items: impl IntoIterator<Item = String>) {
        let _ = write!(self.out, "<ul class=\"{class}\">");
        for item in items {
            let _ = write!(self.out, "<li>{}</li>", esc(&item));
        }
        self.out.push_str("</ul>");
    }

    pub(super) fn table(&mut self, table: &Table) {
        self.out.push_str("<div class=\"wide\" tabindex=\"0\"><table>");
        if !table.caption.is_empty() {
            let _ = write!(self.out, "<caption>{}</caption>", esc(&table.caption));
        }
        self.out.push_str("<thead><tr>");
        for (i, text) in table.head.iter().enumerate() {
            let is_number = table.rows.first().and_then(|row| row.get(i)).is_some_and(|cell| cell.is_number);
            let class = if is_number { " class=\"n\"" } else { "" };
            // Names of knobs may break after their words, so that a column is no wider than it must be.
            let _ = write!(self.out, "<th scope=\"col\"{class}>{}</th>", esc(text).to_string().replace('_', "_<wbr>"));
        }
        self.out.push_str("</tr></thead><tbody>");
        for row in &table.rows {
            self.out.push_str("<tr>");
            for (i, cell) in row.iter().enumerate() {
                let _ = match (i, cell.is_number) {
                    (0, true) => write!(self.out, "<th scope=\"row\" class=\"n\">{}</th>", cell.html),
                    (0, false) => write!(self.out, "<th scope=\"row\">{}</th>", cell.html),
                    (_, true) => write!(self.out, "<td class=\"n\">{}</td>", cell.html),
                    (_, false) => write!(self.out, "<td>{}</td>", cell.html),
                };
            }
            self.out.push_str("</tr>");
        }
        self.out.push_str("</tbody></table></div>");
    }

    /// Where the script shows all knobs of the mark that was pointed at last.
    pub(super) fn knob_panel(&mut self) {
        self.out.push_str("<div id=\"picked\" class=\"picked\" aria-live=\"polite\" hidden></div>");
    }

    /// A folded table of knobs (name, value, more), which marks refer to by `id`.
    pub(super) fn folded_knobs(&mut self, id: &str, table: &Table) {
        let _ = write!(self.out, "<details class=\"data\" id=\"{id}\"><summary>All {} knobs</summary>", table.rows.len());
        self.table(table);
        self.out.push_str("</details>");
    }

    /// A picture with its title, legend and the same as a table.
    pub(super) fn figure(&mut self, picture: &Picture, table: Option<&Table>) {
        self.n_pictures += 1;
        let id = self.n_pictures;
        let _ = write!(self.out, "<figure><figcaption>{}</figcaption>", esc(&picture.title));
        self.legend(picture);
        let hover =
            picture.hover.as_ref().map_or_else(String::new, |json| format!(" tabindex=\"0\" data-hover='{}'", in_single_quotes(json)));
        let _ = write!(
            self.out,
            "<svg class=\"chart\" viewBox=\"0 0 480 {:.0}\" role=\"img\" aria-labelledby=\"t{id} d{id}\"{hover}><title id=\"t{id}\">{}</title>\
             <desc id=\"d{id}\">{}</desc>{}</svg>",
            picture.height,
            esc(&picture.title),
            esc(&picture.about),
            picture.body,
        );
        if let Some(table) = table {
            self.out.push_str("<details class=\"data\"><summary>Data</summary>");
            self.table(table);
            self.out.push_str("</details>");
        }
        self.out.push_str("</figure>");
    }

    fn legend(&mut self, picture: &Picture) {
        if picture.legend.len() < 2 {
            return;
        }
        self.out.push_str("<p class=\"legend\">");
        for (colour, name) in &picture.legend {
            let dash = if *colour >= N_COLOURS { " dash" } else { "" };
            let _ = write!(self.out, "<span><i class=\"c{}{dash}\"></i>{}</span>", colour % N_COLOURS, esc(name));
        }
        self.out.push_str("</p>");
    }
}
