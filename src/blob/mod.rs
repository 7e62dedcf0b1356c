//! Blob columns (`lance.blob.v2`): which columns they are, their values on the way into a data file, the
//! files that payloads go to, and payloads that rows share.
//!
//! Lance's own writer takes one payload after the other. Here payloads are written beside the data file
//! while it is being encoded, several at once, and the writer is given what it calls prepared values:
//! where each payload lies.

pub(crate) mod copy;
pub(crate) mod external;
pub(crate) mod fields;
mod local;
pub(crate) mod managed;
mod share;
pub(crate) mod sidecar;
pub(crate) mod values;
pub(crate) mod writer;

pub use share::{Dedup, Scope};
