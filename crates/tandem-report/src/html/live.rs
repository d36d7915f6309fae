//! The live page of a search: sliders, and what its server predicts for them. It loads nothing and talks to that server only.

use super::{STYLE, policy};

const LIVE_STYLE: &str = include_str!("../assets/live.css");
const LIVE_SCRIPT: &str = include_str!("../assets/live.js");

/// The page; its script asks `/api/space` once and `/api/predict` whenever a slider moves.
#[must_use]
pub fn live_html() -> String {
    let policy = policy::content(LIVE_SCRIPT).replace("default-src 'none';", "default-src 'none'; connect-src 'self';");
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
         <link rel=\"icon\" href=\"data:,\"><title>Tandem explore</title><style>{STYLE}{LIVE_STYLE}</style></head>\n\
         <body><header><h1>Tandem explore</h1><p id=\"recipe\" class=\"quiet\"></p></header>\n\
         <main class=\"live\"><section id=\"controls\" aria-label=\"Knobs\"><div id=\"sliders\"></div>\
         <details id=\"folded\"><summary>More knobs</summary></details>\
         <p class=\"buttons\"><button id=\"reset\">Back to the recipe</button></p></section>\n\
         <section id=\"result\"><div id=\"answer\" aria-live=\"polite\"><p id=\"verdict\"></p><dl id=\"figures\" class=\"headline\"></dl>\
         <p id=\"why\" class=\"quiet\"></p></div>\
         <p class=\"buttons\"><button id=\"keep\">Keep this point</button><button id=\"copy-link\">Copy link</button>\
         <button id=\"copy-command\">Copy command</button><span id=\"copied\" class=\"quiet\" role=\"status\"></span></p>\
         <figure><figcaption>Throughput per GPU against throughput per user</figcaption>\
         <p class=\"legend\"><span><i class=\"c1\"></i>these knobs, with range</span><span><i class=\"c0\"></i>frontier, simulated</span>\
         <span><i class=\"c2\"></i>kept</span><span class=\"grey\">grey: screened</span></p>\
         <svg id=\"chart\" class=\"chart\" viewBox=\"0 0 480 330\" role=\"img\" aria-label=\"Frontier and the point of these knobs\"></svg></figure>\
         <div id=\"kept\" hidden><h2>Kept points</h2><div class=\"wide\" tabindex=\"0\"><table id=\"kept-table\"></table></div></div>\
         <div id=\"ranks\"><h2>Memory of a rank</h2><div class=\"wide\" tabindex=\"0\"><table id=\"memory\"></table></div></div>\
         <h2>The same on the command line</h2><pre><code id=\"command\"></code></pre></section></main>\n\
         <script>{LIVE_SCRIPT}</script></body></html>\n"
    )
}
