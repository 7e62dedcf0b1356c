//! What a command answers: one JSON object or lines for people, and an exit code by error class.

use std::io::Write;
use std::process::ExitCode;

use indicatif::{HumanBytes, HumanCount};
use lance_tasks::{Error, ErrorCode, RetryClass};
use serde_json::{Map, Value, json};

/// A command's success.
pub struct Answer {
    /// Null = nothing is said: standard output holds data.
    pub value: Value,
    pub text: String,
}

/// A command's failure: an error, and what was achieved before it.
pub struct Failure {
    pub error: Error,
    /// The error's own, unless a signal ended the work.
    pub class: RetryClass,
    /// Lines for people, before the error's own.
    pub lines: Vec<String>,
    /// What to do now.
    pub hint: Option<String>,
    /// Beside `error` in the JSON object.
    pub more: Map<String, Value>,
}

pub type Outcome<T> = std::result::Result<T, Box<Failure>>;

impl From<Error> for Box<Failure> {
    fn from(error: Error) -> Self {
        let class = error.class();
        Box::new(Failure { error, class, lines: Vec::new(), hint: None, more: Map::new() })
    }
}

impl From<serde_json::Error> for Box<Failure> {
    fn from(error: serde_json::Error) -> Self {
        Error::from(error).into()
    }
}

impl Failure {
    /// A signal ended the work: it may be taken up again.
    pub fn stopped(signal: &str, what: impl std::fmt::Display) -> Box<Self> {
        let text = format!("stopped by {signal}: {what}");
        let mut failure = Box::<Self>::from(Error::new(ErrorCode::Cancelled, text));
        failure.class = RetryClass::RetryTask;
        failure
    }

    /// Where nobody closer to it gave one.
    pub fn with_hint(mut self: Box<Self>, hint: impl Into<String>) -> Box<Self> {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    pub fn print(&self, json: bool) -> ExitCode {
        let mut error = json!({
            "code": self.error.code().name(),
            "class": self.class.as_str(),
            "message": self.error.message(),
            "task_id": self.error.task_id(),
        });
        if let Some(hint) = &self.hint {
            error["hint"] = hint.as_str().into();
        }
        if json {
            let mut value = self.more.clone();
            value.insert("error".into(), error);
            say(&Value::Object(value).to_string());
        }
        let mut lines = self.lines.clone();
        let (code, class) = (self.error.code().name(), self.class.as_str());
        lines.push(format!("lance-tasks: {code} ({class}): {}", self.error.message()));
        lines.extend(self.hint.iter().map(|hint| format!("hint: {hint}")));
        for line in lines {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
        ExitCode::from(exit_code(self.class))
    }
}

impl Answer {
    pub fn print(&self, json: bool) -> ExitCode {
        if self.value.is_null() {
            return ExitCode::SUCCESS;
        }
        if json {
            say(&self.value.to_string())
        } else {
            say(&self.text)
        }
        ExitCode::SUCCESS
    }
}

/// A line on standard output. A reader that went away early is not this program's failure.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// By error class, after `sysexits.h` where it has a word for it.
pub fn exit_code(class: RetryClass) -> u8 {
    match class {
        RetryClass::Invalid => 2,
        RetryClass::Replan => 3,
        RetryClass::Conflict => 4,
        RetryClass::Fatal => 70,
        RetryClass::RetryTask => 75,
        RetryClass::Credentials => 77,
    }
}

/// `1,234,567 rows`, `1 task`.
pub fn count(number: u64, what: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} {what}{s}", HumanCount(number))
}

pub fn bytes(number: u64) -> String {
    HumanBytes(number).to_string()
}

/// `4.2 s`, `3 min 05 s`, `2 h 10 min`.
pub fn seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(count(1, "task"), "1 task");
        assert_eq!(count(1_234_567, "row"), "1,234,567 rows");
        assert_eq!(seconds(4.24), "4.2 s");
        assert_eq!(seconds(185.0), "3 min 05 s");
        assert_eq!(seconds(7800.0), "2 h 10 min");
    }
}
