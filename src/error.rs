//! Errors: a stable code, a retry class, and a message that names the thing.

use std::fmt;

/// What a caller should do about an [`Error`]. The wire names are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryClass {
    /// The same task (or commit) may be tried again as it is.
    RetryTask,
    /// The dataset moved on: plan again, or prepare the job again.
    Replan,
    /// Another writer made this job's change impossible; a person or policy decides.
    Conflict,
    /// The input is wrong; trying again changes nothing.
    Invalid,
    /// Credentials are missing, wrong or expired.
    Credentials,
    /// Stop: nothing that this library can do makes it right.
    Fatal,
}

impl RetryClass {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RetryTask => "retry_task",
            Self::Replan => "replan",
            Self::Conflict => "conflict",
            Self::Invalid => "invalid",
            Self::Credentials => "credentials",
            Self::Fatal => "fatal",
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $value:literal, $name:literal, $class:ident;)*) => {
        /// What went wrong. The numbers are part of the C ABI and are never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum ErrorCode { $($(#[$doc])* $variant = $value),* }

        impl ErrorCode {
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant),*];

            /// The stable upper-case name, as in `LANCE_TASKS_<NAME>` of the C header.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            pub fn class(self) -> RetryClass {
                match self { $(Self::$variant => RetryClass::$class),* }
            }
        }
    };
}

codes! {
    /// An argument, option, column or specification is wrong.
    InvalidArgument = 1, "INVALID_ARGUMENT", Invalid;
    /// The dataset or a file named by the caller does not exist.
    NotFound = 2, "NOT_FOUND", Invalid;
    /// The dataset or index to be created exists.
    AlreadyExists = 3, "ALREADY_EXISTS", Invalid;
    /// Data does not fit the schema; the message names column, row and value.
    SchemaMismatch = 4, "SCHEMA_MISMATCH", Invalid;
    /// A source file cannot be read or decoded.
    Source = 5, "SOURCE", Invalid;
    /// Bytes that are not a descriptor, are cut short or damaged.
    Decode = 6, "DECODE", Invalid;
    /// A descriptor of an unknown format version, kind or operation.
    VersionMismatch = 7, "VERSION_MISMATCH", Invalid;
    /// The results do not cover the job; the message names a missing task.
    Incomplete = 8, "INCOMPLETE", Replan;
    /// A result contradicts its task (rows, fragments, field ids, files).
    Verification = 9, "VERIFICATION", Fatal;
    /// Another commit made this one impossible.
    Conflict = 10, "CONFLICT", Conflict;
    /// Another commit touched the same fragments; the work must be redone.
    RetryableConflict = 11, "RETRYABLE_CONFLICT", Replan;
    /// The pinned version of the dataset has been cleaned away.
    VersionGone = 12, "VERSION_GONE", Replan;
    /// Versions since the job's own are gone, so an earlier commit cannot be ruled out.
    HistoryGone = 13, "HISTORY_GONE", Fatal;
    /// Storage failed.
    Io = 14, "IO", RetryTask;
    /// Storage refused the credentials.
    Credentials = 15, "CREDENTIALS", Credentials;
    /// The caller cancelled.
    Cancelled = 16, "CANCELLED", Fatal;
    /// The call's deadline passed.
    DeadlineExceeded = 17, "DEADLINE_EXCEEDED", RetryTask;
    /// The task does not fit the executor's memory budget.
    BudgetExceeded = 18, "BUDGET_EXCEEDED", Invalid;
    /// A handle was used after its end, from a callback, or after a fork.
    InvalidState = 19, "INVALID_STATE", Invalid;
    /// Not supported by this library or by Lance for this dataset.
    NotSupported = 20, "NOT_SUPPORTED", Invalid;
    /// The commit's answer was lost and could not be read back; commit again.
    CommitUnknown = 21, "COMMIT_UNKNOWN", RetryTask;
    /// A panic was caught at the boundary; the handle is poisoned.
    Panic = 22, "PANIC", Fatal;
    /// Anything else.
    Internal = 23, "INTERNAL", Fatal;
}

impl ErrorCode {
    pub fn from_i32(value: i32) -> Option<Self> {
        Self::ALL.iter().copied().find(|c| *c as i32 == value)
    }
}

/// An error with its code, its message and, where one is concerned, its task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    code: ErrorCode,
    message: String,
    task_id: Option<String>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: redact(plain(message.into())), task_id: None }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    pub fn code(&self) -> ErrorCode {
        self.code
    }

    pub fn class(&self) -> RetryClass {
        self.code.class()
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn task_id(&self) -> Option<&str> {
        self.task_id.as_deref()
    }

    /// Name the task concerned; an id already there stays.
    pub fn for_task(mut self, id: &str) -> Self {
        self.task_id.get_or_insert_with(|| id.to_owned());
        self
    }

    /// Say where it happened, in front of what happened.
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = redact(format!("{what}: {}", self.message));
        self
    }

    pub fn with_code(mut self, code: ErrorCode) -> Self {
        self.code = code;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}

impl std::error::Error for Error {}

/// An upstream message for people: without the places in Lance's sources, and without the answer of a
/// credential provider, which may hold the secrets themselves.
fn plain(mut message: String) -> String {
    const PROVIDER: &str = "Failed to get AWS credentials";
    if let Some(at) = message.find(PROVIDER) {
        message.truncate(at + PROVIDER.len());
    }
    while let Some(end) = message.find(".rs:") {
        let Some(start) = message[..end].rfind(", /") else { break };
        let place = &message[start + 2..end];
        let numbers = message[end + 4..]
            .find(|c: char| !c.is_ascii_digit() && c != ':')
            .map_or(message.len(), |n| end + 4 + n);
        if place.contains(char::is_whitespace) {
            break;
        }
        message.replace_range(start..numbers, "");
    }
    message
}

/// Upstream errors may quote a URI: passwords and signed query strings in one never leave the library.
fn redact(message: String) -> String {
    if !message.contains("://") {
        return message;
    }
    let mut out = String::with_capacity(message.len());
    let mut rest = message.as_str();
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let end = tail
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ')' | '>' | ',' | '`'))
            .unwrap_or(tail.len());
        let (uri, after) = tail.split_at(end);
        let (path, query) = uri.split_once('?').map_or((uri, None), |(p, q)| (p, Some(q)));
        let authority_end = path.find('/').unwrap_or(path.len());
        match path[..authority_end].rfind('@') {
            // The user part of an Azure container (abfss://container@account) holds no colon.
            Some(at) if path[..at].contains(':') => {
                out.push_str("***");
                out.push_str(&path[at..]);
            }
            _ => out.push_str(path),
        }
        if query.is_some() {
            out.push_str("?***");
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

impl From<lance::Error> for Error {
    fn from(error: lance::Error) -> Self {
        use lance::Error as L;
        if let L::External { source } = &error
            && let Some(own) = source.downcast_ref::<Error>()
        {
            return own.clone();
        }
        if let Some(own) = find_own(&error) {
            return own;
        }
        let message = root_message(&error);
        let code = match &error {
            L::InvalidInput { .. }
            | L::InvalidTableLocation { .. }
            | L::InvalidRef { .. }
            | L::Cleanup { .. } => ErrorCode::InvalidArgument,
            L::DatasetAlreadyExists { .. } => ErrorCode::AlreadyExists,
            L::SchemaMismatch { .. } | L::Schema { .. } => ErrorCode::SchemaMismatch,
            L::DatasetNotFound { .. } | L::NotFound { .. } => ErrorCode::NotFound,
            L::NotSupported { .. } => ErrorCode::NotSupported,
            L::RetryableCommitConflict { .. } | L::TooMuchWriteContention { .. } => {
                ErrorCode::RetryableConflict
            }
            L::CommitConflict { .. } | L::IncompatibleTransaction { .. } => ErrorCode::Conflict,
            L::VersionConflict { .. } | L::VersionNotFound { .. } => ErrorCode::VersionGone,
            L::Timeout { .. } => ErrorCode::DeadlineExceeded,
            L::Index { .. } => ErrorCode::InvalidArgument,
            L::IO { .. } => ErrorCode::Io,
            _ if error.is_commit_status_unknown() => ErrorCode::CommitUnknown,
            _ => ErrorCode::Internal,
        };
        Self::new(refine(code, &message), message)
    }
}

/// Our own error, where Lance or DataFusion carried one through as a source.
fn find_own(error: &(dyn std::error::Error + 'static)) -> Option<Error> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = next {
        if let Some(own) = current.downcast_ref::<Error>() {
            return Some(own.clone());
        }
        if let Some(arrow_schema::ArrowError::ExternalError(inner)) =
            current.downcast_ref::<arrow_schema::ArrowError>()
            && let Some(own) = find_own(inner.as_ref())
        {
            return Some(own);
        }
        next = current.source();
    }
    None
}

/// The outermost message and, where it adds something, the innermost cause.
fn root_message(error: &(dyn std::error::Error + 'static)) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        let text = current.to_string();
        if !text.is_empty() && !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = current.source();
    }
    message
}

/// Stores report refused credentials as plain I/O; their words are the only mark.
fn refine(code: ErrorCode, message: &str) -> ErrorCode {
    if matches!(code, ErrorCode::Io | ErrorCode::Internal | ErrorCode::NotFound) {
        const SIGNS: &[&str] = &[
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "ExpiredToken",
            "AccessDenied",
            "AuthenticationFailed",
            "Unauthenticated",
            "PermissionDenied",
            "Unauthorized",
            "no credentials",
            "failed to load credentials",
            "CredentialsNotLoaded",
            "403 Forbidden",
            "401 Unauthorized",
            "Failed to get AWS credentials",
            "InvalidToken",
            "Invalid Access Key",
        ];
        // The answer to a HEAD has no body: all it says of an expired token is 400.
        let head = message.contains("Error performing HEAD") && message.contains("400 Bad Request");
        if head || SIGNS.iter().any(|sign| message.contains(sign)) {
            return ErrorCode::Credentials;
        }
        if ["ContainerNotFound", "NoSuchBucket"].iter().any(|sign| message.contains(sign)) {
            return ErrorCode::NotFound;
        }
    }
    code
}

impl From<arrow_schema::ArrowError> for Error {
    fn from(error: arrow_schema::ArrowError) -> Self {
        if let Some(own) = find_own(&error) {
            return own;
        }
        let code = match &error {
            arrow_schema::ArrowError::IoError(..) => ErrorCode::Io,
            arrow_schema::ArrowError::CastError(_) | arrow_schema::ArrowError::SchemaError(_) => {
                ErrorCode::SchemaMismatch
            }
            _ => ErrorCode::InvalidArgument,
        };
        Self::new(code, root_message(&error))
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        let message = root_message(&error);
        let code = match &error {
            object_store::Error::NotFound { .. } => ErrorCode::NotFound,
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. } => ErrorCode::Credentials,
            object_store::Error::NotSupported { .. } => ErrorCode::NotSupported,
            _ => ErrorCode::Io,
        };
        Self::new(refine(code, &message), message)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::new(ErrorCode::Io, error.to_string())
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::new(ErrorCode::Decode, format!("JSON: {error}"))
    }
}

impl From<Error> for lance::Error {
    fn from(error: Error) -> Self {
        lance::Error::External { source: Box::new(error) }
    }
}

impl From<Error> for arrow_schema::ArrowError {
    fn from(error: Error) -> Self {
        arrow_schema::ArrowError::ExternalError(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_never_carry_passwords_or_signatures() {
        let error =
            Error::invalid("open s3://key:pa/ss@bucket/x failed, https://u:pw@h/p?sig=abc done");
        assert!(!error.message().contains("pw") && !error.message().contains("sig=abc"), "{error}");
        assert!(error.message().ends_with(" done"), "{error}");
        let azure = Error::invalid("abfss://container@account.dfs.core.windows.net/path");
        assert!(azure.message().contains("container@account"), "{azure}");
    }

    #[test]
    fn messages_end_without_places_in_upstream_sources() {
        let error = Error::invalid("no field x, /registry/lance-14.0.2/src/a.rs:10:2, and on");
        assert_eq!(error.message(), "no field x, and on");
        let error = Error::invalid("Failed to get AWS credentials: {\"SecretAccessKey\": \"x\"}");
        assert!(!error.message().contains("Secret"), "{error}");
        for other in ["a.rs:1", ", /tmp/a b.rs:1", "of file x.rs: bad"] {
            assert_eq!(Error::invalid(other).message(), other);
        }
    }

    #[test]
    fn own_errors_survive_the_way_through_lance() {
        let own = Error::new(ErrorCode::SchemaMismatch, "column 'a', row 3");
        let lance: lance::Error = own.clone().into();
        assert_eq!(Error::from(lance), own);
        let arrow: arrow_schema::ArrowError = own.clone().into();
        assert_eq!(Error::from(lance::Error::from(arrow)), own);
    }

    #[test]
    fn codes_are_unique_and_found_again() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_i32(*code as i32), Some(*code));
        }
    }
}
