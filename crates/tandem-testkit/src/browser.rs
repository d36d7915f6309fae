//! A real browser, driven over WebDriver: Chromium and its driver, both from Debian (`chromium`, `chromium-driver`).
//!
//! Only what the tests of pages need: sizes, dark mode and print, scripts, what the console said, screenshots.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::not_run;

/// Everything here is far faster; a browser that takes longer has hung.
const DEADLINE: Duration = Duration::from_secs(120);

/// How a page is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Part of a screenshot's name.
    pub name: &'static str,
    /// CSS pixels.
    pub width: u32,
    /// CSS pixels.
    pub height: u32,
    /// Whether the reader has asked for dark pages.
    pub is_dark: bool,
    /// Whether it is laid out for paper.
    pub is_print: bool,
}

impl View {
    /// A desktop and a phone, each light and dark, and paper.
    pub const ALL: [View; 5] = [
        View { name: "desktop", width: 1280, height: 900, is_dark: false, is_print: false },
        View { name: "desktop-dark", width: 1280, height: 900, is_dark: true, is_print: false },
        View { name: "phone", width: 390, height: 844, is_dark: false, is_print: false },
        View { name: "phone-dark", width: 390, height: 844, is_dark: true, is_print: false },
        View { name: "print", width: 794, height: 1123, is_dark: false, is_print: true },
    ];
}

/// A browser with one page; both it and its driver end with the value.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
}

impl Browser {
    /// Starts it with a fresh profile below `dir`. Where there is none, `what` is noted as not run.
    ///
    /// # Panics
    /// When the driver is there and says nothing that can be understood.
    #[must_use]
    pub fn start(dir: &Path, what: &str) -> Option<Self> {
        let started =
            Command::new("chromedriver").arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut driver) = started else {
            not_run(what, "there is no Chromium with its driver (Debian: apt-get install chromium chromium-driver)");
            return None;
        };
        let lines = BufReader::new(driver.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
        let port = lines.filter_map(|line| line.split_once("successfully on port ")?.1.trim_end_matches('.').parse().ok()).next();
        let mut browser = Browser { driver, port: port.expect("the driver says its port"), session: String::new() };
        let profile = format!("--user-data-dir={}", dir.join("profile").display());
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--hide-scrollbars",
            &profile,
        ];
        let options = json!({"args": arguments});
        let wanted = json!({"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}});
        match browser.ask("POST", "/session", &json!({"capabilities": {"alwaysMatch": wanted}})) {
            Ok(value) => value["sessionId"].as_str().expect("a session has a name").clone_into(&mut browser.session),
            Err(why) => {
                not_run(what, format!("Chromium does not start here: {}", why.lines().next().unwrap_or_default()));
                return None;
            }
        }
        Some(browser)
    }

    /// Lays the page out as `view` says.
    pub fn look(&self, view: View) {
        let scheme = if view.is_dark { "dark" } else { "light" };
        let media =
            json!({"media": if view.is_print { "print" } else { "" }, "features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &media);
        self.resize(view.width, view.height);
    }

    fn resize(&self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Loads a page.
    pub fn open(&self, url: &str) {
        self.command("url", &json!({"url": url}));
    }

    /// What the body of a function returns.
    #[must_use]
    pub fn eval(&self, body: &str) -> Value {
        self.command("execute/sync", &json!({"script": body, "args": []}))
    }

    /// Waits until the body of a function returns something that is true.
    ///
    /// # Panics
    /// When it never does.
    pub fn wait(&self, body: &str) {
        let began = Instant::now();
        while !self.eval(&format!("return Boolean((() => {{{body}}})())")).as_bool().unwrap_or(false) {
            assert!(began.elapsed() < DEADLINE, "the page never came to: {body}; the console says {:?}", self.complaints());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses a key (W3C code point) in the element that has the focus, or moves the pointer there first: the centre of `selector`.
    pub fn point_at(&self, selector: &str) {
        let place = self.eval(&format!(
            "const e = document.querySelector({selector:?}); e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect(); \
             return [r.x + r.width / 2, r.y + r.height / 2]"
        ));
        for (kind, x) in [("mouseMoved", place[0].as_f64().unwrap_or(0.0) - 1.0), ("mouseMoved", place[0].as_f64().unwrap_or(0.0))] {
            self.devtools("Input.dispatchMouseEvent", &json!({"type": kind, "x": x, "y": place[1]}));
        }
    }

    /// What the page wrote to the console since the last call.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let log = self.command("se/log", &json!({"type": "browser"}));
        log.as_array().into_iter().flatten().map(|entry| entry["message"].to_string()).collect()
    }

    /// Writes a picture of the whole page, at most 12,000 pixels high, into `file`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn screenshot(&self, file: &Path, view: View) {
        let height = self.eval("return Math.ceil(document.documentElement.scrollHeight)").as_u64().unwrap_or(0);
        let height = u32::try_from(height.min(12_000)).expect("it is small").max(view.height);
        self.resize(view.width, height);
        let picture = self.devtools("Page.captureScreenshot", &json!({"format": "png"}));
        self.resize(view.width, view.height);
        fs::create_dir_all(file.parent().expect("a file lies in a folder")).expect("a folder for screenshots");
        fs::write(file, base64(picture["data"].as_str().expect("a picture"))).expect("a screenshot");
    }

    /// The page on paper.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn pdf(&self) -> Vec<u8> {
        base64(self.devtools("Page.printToPDF", &json!({"printBackground": false}))["data"].as_str().expect("a document"))
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.command("goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    fn command(&self, path: &str, body: &Value) -> Value {
        let answer = self.ask("POST", &format!("/session/{}/{path}", self.session), body);
        answer.unwrap_or_else(|why| panic!("{path}: {why}"))
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the driver listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let body = body.to_string();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).expect("the driver reads");
        let mut reply = BufReader::new(stream);
        let (mut line, mut length) = (String::new(), 0);
        while reply.read_line(&mut line).expect("the driver answers") > 2 {
            if let Some((_, n)) = line.to_ascii_lowercase().split_once("content-length:") {
                length = n.trim().parse().expect("a length");
            }
            line.clear();
        }
        let mut text = vec![0; length];
        reply.read_exact(&mut text).expect("the whole answer");
        let answer: Value = serde_json::from_slice(&text).expect("the driver speaks JSON");
        match answer["value"]["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", answer["value"]["message"].as_str().unwrap_or_default())),
            None => Ok(answer["value"].clone()),
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // The browser ends with its session.
            let _ = self.ask("DELETE", &format!("/session/{}", self.session), &json!({}));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Bytes of a text in base64 (RFC 4648), padding and line ends passed over.
fn base64(text: &str) -> Vec<u8> {
    let digits = text.bytes().filter_map(|c| match c {
        b'A'..=b'Z' => Some(u32::from(c - b'A')),
        b'a'..=b'z' => Some(u32::from(c - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(c - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    });
    let (mut bytes, mut bits, mut n_bits) = (Vec::new(), 0_u32, 0);
    for digit in digits {
        bits = (bits << 6) | digit;
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push(u8::try_from((bits >> n_bits) & 0xff).expect("eight bits"));
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmE=", "fooba"), ("Zm9v\nYmFy", "foobar")] {
            assert_eq!(base64(text), bytes.as_bytes());
        }
    }
}
