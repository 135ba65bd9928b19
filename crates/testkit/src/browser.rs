//! A real Chromium, driven through its DevTools protocol over a pair of pipes: no port, no driver, no
//! other process.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, unbounded};
use serde_json::{Value, json};

use crate::{eventually, own_folder, variable};

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A browser with one page. Dropping it kills the browser and deletes its profile.
pub struct Browser {
    process: Child,
    commands: Option<ChildStdin>,
    answers: Receiver<Value>,
    reader: Option<JoinHandle<()>>,
    profile: PathBuf,
    session: String,
    count: u64,
    /// Every error of the page: exceptions, and violations of its content security policy.
    pub complaints: Vec<String>,
}

impl Browser {
    /// A browser whose page is still empty.
    pub fn start() -> Browser {
        let profile = own_folder("chromium");
        // Chromium reads commands from descriptor 3 and writes answers to descriptor 4, pipes to this process.
        let mut process = Command::new("/bin/sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#])
            .arg(variable("TBD_TEST_CHROMIUM"))
            .args(["--headless", "--no-sandbox", "--disable-gpu"])
            .args(["--disable-quic", "--no-first-run", "--disable-sync"])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .args(["--disable-dev-shm-usage", "--remote-debugging-pipe"])
            .arg("--window-size=1280,1000")
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("start Chromium");
        let output = BufReader::new(process.stdout.take().expect("stdout is piped"));
        let (send, answers) = unbounded();
        let reader = thread::spawn(move || {
            for message in output.split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("a message is JSON");
                if send.send(message).is_err() {
                    break;
                }
            }
        });
        let mut browser = Browser {
            commands: process.stdin.take(),
            process,
            answers,
            reader: Some(reader),
            profile,
            session: String::new(),
            count: 0,
            complaints: Vec::new(),
        };
        let target = browser.command("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.command("Target.attachToTarget", attach);
        browser.session = attached["sessionId"]
            .as_str()
            .expect("a session")
            .to_owned();
        for domain in ["Page", "Runtime", "Log"] {
            browser.command(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Opens an address; returns once the page's script has run.
    pub fn open(&mut self, url: &str) {
        let opened = self.command("Page.navigate", json!({ "url": url }));
        assert_eq!(opened["errorText"], Value::Null, "{url}");
        self.until(
            "the page to be loaded",
            "document.readyState === 'complete'",
        );
    }

    /// The value of a JavaScript expression.
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let result = self.command("Runtime.evaluate", parameters);
        assert_eq!(result["exceptionDetails"], Value::Null, "{expression}");
        result["result"]["value"].clone()
    }

    /// The visible text of the first element that matches; empty if none does.
    pub fn text(&mut self, selector: &str) -> String {
        let value = self.value(&format!(
            "document.querySelector({selector:?})?.innerText ?? ''"
        ));
        value.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub fn until(&mut self, what: &str, expression: &str) {
        let limit = Duration::from_secs(30);
        let start = Instant::now();
        eventually(limit + PATIENCE, what, || {
            if self.value(expression) == Value::Bool(true) {
                return Some(());
            }
            if start.elapsed() > limit {
                panic!("no {what}; the page says:\n{}", self.text("body"));
            }
            None
        });
    }

    /// Waits until an element's text contains a substring; the whole text.
    #[track_caller]
    pub fn until_text(&mut self, selector: &str, part: &str) -> String {
        let holds =
            format!("(document.querySelector({selector:?})?.innerText ?? '').includes({part:?})");
        self.until(&format!("{part:?} in {selector}"), &holds);
        self.text(selector)
    }

    /// Clicks, as a mouse does, in the middle of the first element that matches.
    #[track_caller]
    pub fn click(&mut self, selector: &str) {
        let place = self.value(&format!(
            "(() => {{ const found = document.querySelector({selector:?}); if (!found) return null;
              found.scrollIntoView({{ block: 'center' }}); const at = found.getBoundingClientRect();
              return [at.x + at.width / 2, at.y + at.height / 2]; }})()"
        ));
        let (x, y) = (place[0].as_f64(), place[1].as_f64());
        assert!(x.is_some() && y.is_some(), "nothing to click: {selector}");
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({ "type": kind, "x": x, "y": y, "button": "left", "clickCount": 1 });
            self.command("Input.dispatchMouseEvent", event);
        }
    }

    /// Presses one key in the focused element.
    pub fn press(&mut self, key: &str, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let event = json!({ "type": kind, "key": key, "code": key, "text": text });
            self.command("Input.dispatchKeyEvent", event);
        }
    }

    /// Sends a command of the protocol and returns its result.
    #[track_caller]
    pub fn command(&mut self, method: &str, parameters: Value) -> Value {
        self.count += 1;
        let mut command = json!({ "id": self.count, "method": method, "params": parameters });
        if !self.session.is_empty() {
            command["sessionId"] = json!(self.session);
        }
        let mut bytes = command.to_string().into_bytes();
        bytes.push(0);
        let commands = self.commands.as_mut().expect("the browser runs");
        commands.write_all(&bytes).expect("Chromium takes commands");
        loop {
            let answer = self.answers.recv_timeout(PATIENCE);
            let mut answer = answer.unwrap_or_else(|_| panic!("Chromium does not answer {method}"));
            if answer["id"] == self.count {
                assert_eq!(answer["error"], Value::Null, "{method}");
                return answer["result"].take();
            }
            self.note(&answer);
        }
    }

    fn note(&mut self, event: &Value) {
        let entry = &event["params"]["entry"];
        // An error status is not a fault of the page.
        let is_complaint = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => entry["level"] == "error" && entry["source"] != "network",
            _ => false,
        };
        if is_complaint {
            self.complaints.push(event["params"].to_string());
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // With its pipe closed, Chromium shuts down in an orderly way, together with its children.
        drop(self.commands.take());
        let (done, ended) = bounded(1);
        let reader = self.reader.take();
        thread::spawn(move || {
            let _ = reader.map(JoinHandle::join);
            let _ = done.send(());
        });
        if ended.recv_timeout(Duration::from_secs(5)).is_err() {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
