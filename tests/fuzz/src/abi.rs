//! The functions of `lance_tasks.h`, found by name in the built library, and calls that check what the
//! header promises of every one: a status, an error object that says code, class and message, outputs
//! written on success only, no panic.

use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::ptr;

use crate::slot::Slot;

pub type Status = i32;
pub const OK: Status = 0;
pub const INVALID_ARGUMENT: Status = 1;
pub const PANIC: Status = 22;
pub const INTERNAL: Status = 23;
pub const CODES: usize = 24;

/// Name and retry class of each code, as the header states them.
const EXPECTED: [(&str, &str); CODES] = [
    ("", ""),
    ("INVALID_ARGUMENT", "invalid"),
    ("NOT_FOUND", "invalid"),
    ("ALREADY_EXISTS", "invalid"),
    ("SCHEMA_MISMATCH", "invalid"),
    ("SOURCE", "invalid"),
    ("DECODE", "invalid"),
    ("VERSION_MISMATCH", "invalid"),
    ("INCOMPLETE", "replan"),
    ("VERIFICATION", "fatal"),
    ("CONFLICT", "conflict"),
    ("RETRYABLE_CONFLICT", "replan"),
    ("VERSION_GONE", "replan"),
    ("HISTORY_GONE", "fatal"),
    ("IO", "retry_task"),
    ("CREDENTIALS", "credentials"),
    ("CANCELLED", "fatal"),
    ("DEADLINE_EXCEEDED", "retry_task"),
    ("BUDGET_EXCEEDED", "invalid"),
    ("INVALID_STATE", "invalid"),
    ("NOT_SUPPORTED", "invalid"),
    ("COMMIT_UNKNOWN", "retry_task"),
    ("PANIC", "fatal"),
    ("INTERNAL", "fatal"),
];

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawBytes {
    pub data: *const u8,
    pub len: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ExecutorOptions {
    pub struct_size: u32,
    pub num_threads: u32,
    pub memory_budget: u64,
}

pub type Callback = unsafe extern "C" fn(*mut c_void, *const c_void);
pub type Finalizer = unsafe extern "C" fn(*mut c_void);

#[repr(C)]
#[derive(Clone, Copy)]
pub struct CallOptions {
    pub struct_size: u32,
    pub flags: u32,
    pub storage_options: *const u8,
    pub storage_options_len: usize,
    pub timeout_ms: u64,
    pub cancel: *const c_void,
    pub progress: Option<Callback>,
    pub progress_context: *mut c_void,
    pub progress_finalizer: Option<Finalizer>,
}

#[repr(C)]
pub struct ArrowSchema {
    pub format: *const c_char,
    pub name: *const c_char,
    pub metadata: *const c_char,
    pub flags: i64,
    pub n_children: i64,
    pub children: *mut *mut ArrowSchema,
    pub dictionary: *mut ArrowSchema,
    pub release: Option<unsafe extern "C" fn(*mut ArrowSchema)>,
    pub private_data: *mut c_void,
}

#[repr(C)]
pub struct ArrowArray {
    pub length: i64,
    pub null_count: i64,
    pub offset: i64,
    pub n_buffers: i64,
    pub n_children: i64,
    pub buffers: *mut *const c_void,
    pub children: *mut *mut ArrowArray,
    pub dictionary: *mut ArrowArray,
    pub release: Option<unsafe extern "C" fn(*mut ArrowArray)>,
    pub private_data: *mut c_void,
}

#[repr(C)]
pub struct ArrowStream {
    pub get_schema: Option<unsafe extern "C" fn(*mut ArrowStream, *mut ArrowSchema) -> i32>,
    pub get_next: Option<unsafe extern "C" fn(*mut ArrowStream, *mut ArrowArray) -> i32>,
    pub get_last_error: Option<unsafe extern "C" fn(*mut ArrowStream) -> *const c_char>,
    pub release: Option<unsafe extern "C" fn(*mut ArrowStream)>,
    pub private_data: *mut c_void,
}

macro_rules! empty {
    ($($type:ty),*) => {$(
        impl $type {
            /// All zero: released.
            pub fn empty() -> Self {
                // SAFETY: pointers and optional functions may be NULL, numbers zero.
                unsafe { std::mem::zeroed() }
            }
        }
    )*};
}
empty!(ArrowSchema, ArrowArray, ArrowStream, CallOptions);

impl Drop for ArrowStream {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            // SAFETY: a live stream, released once.
            unsafe { release(self) };
        }
    }
}

pub type Err = *mut *mut c_void;
type Exec = *const c_void;
type Opts = *const CallOptions;
type Stream = *mut ArrowStream;

macro_rules! functions {
    ($($name:ident $symbol:literal: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The library's functions.
        pub struct Functions { $(pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)* }

        impl Functions {
            /// Load the library, for good.
            pub fn load(path: &Path) -> Result<Self, String> {
                // SAFETY: the library under test; its constructors only look at the CPU.
                let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
                let library = Box::leak(Box::new(library));
                // SAFETY: the types are the header's.
                Ok(Self { $($name: unsafe {
                    *library.get($symbol).map_err(|e| e.to_string())?
                },)* })
            }
        }
    };
}

functions! {
    abi_version "lance_tasks_abi_version": fn() -> u32;
    executor_new "lance_tasks_executor_new": fn(*const ExecutorOptions, *mut *mut c_void, Err) -> Status;
    executor_free "lance_tasks_executor_free": fn(*mut c_void);
    cancel_token_new "lance_tasks_cancel_token_new": fn() -> *mut c_void;
    cancel_token_cancel "lance_tasks_cancel_token_cancel": fn(*const c_void);
    cancel_token_free "lance_tasks_cancel_token_free": fn(*mut c_void);
    prepare "lance_tasks_prepare":
        fn(Exec, *const u8, usize, *mut ArrowSchema, Opts, *mut RawBytes, Err) -> Status;
    job_task "lance_tasks_job_task":
        fn(*const u8, usize, *const u8, usize, *mut RawBytes, Err) -> Status;
    plan "lance_tasks_plan": fn(Exec, *const u8, usize, Stream, Opts, Stream, Err) -> Status;
    execute "lance_tasks_execute": fn(Exec, *const u8, usize, Stream, Opts, Stream, Err) -> Status;
    execute_all "lance_tasks_execute_all": fn(Exec, Stream, Opts, Stream, Err) -> Status;
    read "lance_tasks_read": fn(Exec, *const u8, usize, Opts, Stream, Err) -> Status;
    read_all "lance_tasks_read_all": fn(Exec, Stream, Opts, Stream, Err) -> Status;
    adopt "lance_tasks_adopt": fn(
        Exec, *const u8, usize, *const u8, usize, *const u8, usize, Opts, Stream, Err
    ) -> Status;
    commit "lance_tasks_commit": fn(Exec, *const u8, usize, Stream, Opts, *mut RawBytes, Err) -> Status;
    abort "lance_tasks_abort": fn(Exec, *const u8, usize, Stream, Opts, *mut RawBytes, Err) -> Status;
    convert "lance_tasks_convert": fn(*const u8, usize, i32, *mut RawBytes, Err) -> Status;
    table_to_rows "lance_tasks_table_to_rows": fn(Stream, *mut RawBytes, Err) -> Status;
    next_row "lance_tasks_next_row": fn(Stream, *mut RawBytes, Err) -> Status;
    rows_to_table "lance_tasks_rows_to_table": fn(*const u8, usize, Stream, Err) -> Status;
    bytes_free "lance_tasks_bytes_free": fn(*mut RawBytes);
    error_code "lance_tasks_error_code": fn(*const c_void) -> Status;
    error_name "lance_tasks_error_name": fn(*const c_void) -> *const c_char;
    error_class "lance_tasks_error_class": fn(*const c_void) -> *const c_char;
    error_message "lance_tasks_error_message": fn(*const c_void) -> *const c_char;
    error_task_id "lance_tasks_error_task_id": fn(*const c_void) -> *const c_char;
    error_free "lance_tasks_error_free": fn(*mut c_void);
}

/// A property that does not hold.
#[derive(Debug)]
pub struct Broken(pub String);
pub type Check<T> = Result<T, Broken>;

macro_rules! broken {
    ($($arg:tt)*) => { return Err($crate::abi::Broken(format!($($arg)*))) };
}
pub(crate) use broken;

/// A call that failed as it may.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    pub code: Status,
    pub message: String,
}

/// Outer: the properties; inner: the call.
pub type Outcome<T> = Check<Result<T, Failure>>;

/// The library, with every call noted in the slot that the parent process watches.
pub struct Api {
    pub f: Functions,
    pub slot: &'static Slot,
}

const UNTOUCHED: *const u8 = ptr::without_provenance(0x5a5a_5a5a);

impl Api {
    fn text(&self, what: &str, text: *const c_char) -> Check<String> {
        if text.is_null() {
            broken!("an error has no {what}");
        }
        // SAFETY: the header: UTF-8 with a terminating NUL, until the error is freed.
        match unsafe { CStr::from_ptr(text) }.to_str() {
            Ok("") => broken!("an error's {what} is empty"),
            Ok(text) => Ok(text.to_owned()),
            Err(_) => broken!("an error's {what} is not UTF-8"),
        }
    }

    /// Run one function of the library and check its answer.
    pub fn call(&self, name: &str, call: impl FnOnce(Err) -> Status) -> Outcome<()> {
        let mut error: *mut c_void = ptr::null_mut();
        self.slot.enter();
        let status = call(&mut error);
        self.slot.leave(status);
        if status == OK {
            if !error.is_null() {
                broken!("{name} succeeded and gave an error");
            }
            return Ok(Ok(()));
        }
        if error.is_null() {
            broken!("{name} answered {status} and gave no error");
        }
        let checked = self.error(name, status, error);
        // SAFETY: made by the library, freed once.
        unsafe { (self.f.error_free)(error) };
        checked.map(Err)
    }

    fn error(&self, name: &str, status: Status, error: *const c_void) -> Check<Failure> {
        // SAFETY: a live error.
        let (code, label, class, message, task) = unsafe {
            (
                (self.f.error_code)(error),
                (self.f.error_name)(error),
                (self.f.error_class)(error),
                (self.f.error_message)(error),
                (self.f.error_task_id)(error),
            )
        };
        let message = self.text("message", message)?;
        let (label, class) = (self.text("name", label)?, self.text("class", class)?);
        if !task.is_null() && self.text("task id", task)?.len() != 36 {
            broken!("{name}: an error's task id is no id");
        }
        if code != status {
            broken!("{name} answered {status}, its error says {code}: {message}");
        }
        let known = usize::try_from(code).ok().and_then(|c| EXPECTED.get(c));
        if known != Some(&(label.as_str(), class.as_str())) {
            broken!("{name}: code {code} is called {label} of class {class}: {message}");
        }
        if code == PANIC {
            broken!("{name} panicked: {message}");
        }
        Ok(Failure { code, message })
    }

    /// As [`Api::call`], for a function that hands out bytes.
    pub fn bytes(
        &self,
        name: &str,
        call: impl FnOnce(*mut RawBytes, Err) -> Status,
    ) -> Outcome<Vec<u8>> {
        let mut out = RawBytes { data: UNTOUCHED, len: 0x5a5a };
        match self.call(name, |error| call(&mut out, error))? {
            Ok(()) => {
                let bytes = if out.data.is_null() {
                    Vec::new()
                } else {
                    // SAFETY: handed out by the library just now.
                    unsafe { std::slice::from_raw_parts(out.data, out.len) }.to_vec()
                };
                // SAFETY: as above, freed once.
                unsafe { (self.f.bytes_free)(&mut out) };
                if !out.data.is_null() || out.len != 0 {
                    broken!("{name}: freed bytes are not set to NULL and 0");
                }
                Ok(Ok(bytes))
            }
            Err(failure) => {
                if out.data != UNTOUCHED || out.len != 0x5a5a {
                    broken!("{name} failed and wrote its output: {}", failure.message);
                }
                Ok(Err(failure))
            }
        }
    }

    /// As [`Api::call`], for a function that hands out a stream.
    pub fn stream(
        &self,
        name: &str,
        call: impl FnOnce(*mut ArrowStream, Err) -> Status,
    ) -> Outcome<ArrowStream> {
        let mut out = ArrowStream::empty();
        match self.call(name, |error| call(&mut out, error))? {
            Ok(()) if out.release.is_none() => broken!("{name} succeeded and gave no stream"),
            Ok(()) => Ok(Ok(out)),
            Err(failure) if out.release.is_some() => {
                broken!("{name} failed and wrote its output: {}", failure.message)
            }
            Err(failure) => Ok(Err(failure)),
        }
    }

    pub fn convert(&self, data: &[u8], encoding: i32) -> Outcome<Vec<u8>> {
        // SAFETY: readable bytes, places for the outputs; here and below.
        self.bytes("convert", |out, error| unsafe {
            (self.f.convert)(data.as_ptr(), data.len(), encoding, out, error)
        })
    }

    pub fn job_task(&self, job: &[u8], partition: &[u8]) -> Outcome<Vec<u8>> {
        self.bytes("job_task", |out, error| unsafe {
            let (name, len) = (partition.as_ptr(), partition.len());
            (self.f.job_task)(job.as_ptr(), job.len(), name, len, out, error)
        })
    }

    pub fn rows_to_table(&self, framed: &[u8]) -> Outcome<ArrowStream> {
        self.stream("rows_to_table", |out, error| unsafe {
            (self.f.rows_to_table)(framed.as_ptr(), framed.len(), out, error)
        })
    }

    /// Takes the stream over, as the library does.
    pub fn table_to_rows(&self, mut table: ArrowStream) -> Outcome<Vec<u8>> {
        let rows = self.bytes("table_to_rows", |out, error| unsafe {
            (self.f.table_to_rows)(&mut table, out, error)
        })?;
        taken("table_to_rows", &table)?;
        Ok(rows)
    }

    /// The next row, empty at the end.
    pub fn next_row(&self, table: &mut ArrowStream) -> Outcome<Vec<u8>> {
        self.bytes("next_row", |out, error| unsafe { (self.f.next_row)(table, out, error) })
    }
}

/// A stream that was handed in must have been taken over, whatever came of the call.
pub fn taken(name: &str, stream: &ArrowStream) -> Check<()> {
    if stream.release.is_some() {
        broken!("{name} left a stream that it was handed");
    }
    Ok(())
}
