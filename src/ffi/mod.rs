//! The C ABI. Every `unsafe` of the crate is in this folder, and no logic.
//!
//! Conventions, for every function of the header:
//! - A fallible function answers with a [`LanceTasksStatus`], 0 being success; inputs come first, then
//!   outputs, then `out_error`, which may be NULL. Outputs are written on success only, `*out_error` on
//!   failure only.
//! - Strings and bytes come in as pointer and length, are copied, and need no terminator. NULL with
//!   length 0 is empty.
//! - Arrow streams and schemas handed in are taken over: the library releases them on every path,
//!   also on failure, and the caller's struct is left released.
//! - A panic inside becomes `LANCE_TASKS_PANIC` and poisons the executor handle, not the process.

#[cfg(panic = "abort")]
compile_error!("the panic guard of the C ABI needs panic = \"unwind\"");

mod error;
mod executor;
mod files;
mod guard;
mod python;
mod stream;
mod tables;
mod types;
mod verbs;

pub(crate) mod process;

pub use error::*;
pub use executor::*;
pub use files::*;
pub use python::*;
pub use stream::{FFI_ArrowArrayStream, FFI_ArrowSchema};
pub use tables::*;
pub use types::*;
pub use verbs::*;
