//! Arrow streams in and out. arrow-rs's own callbacks do not catch panics, so what goes out is wrapped.

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::{
    Array, RecordBatch, RecordBatchIterator, RecordBatchOptions, RecordBatchReader, StructArray,
    make_array,
};
use arrow_data::ArrayData;
use arrow_schema::{ArrowError, DataType, Schema, SchemaRef};

pub use arrow::ffi::FFI_ArrowSchema;
use arrow::ffi::{FFI_ArrowArray, from_ffi_and_data_type};
pub use arrow::ffi_stream::FFI_ArrowArrayStream;

use super::guard::{inject_panic, null, panic_error, panic_text};
use crate::error::{Error, Result};

pub(super) type Reader = Box<dyn RecordBatchReader + Send>;

/// A stream handed in. Taken over first thing in each function, so that it is released on every path.
pub(super) struct Input(Option<FFI_ArrowArrayStream>);

impl Input {
    /// # Safety
    /// `stream` is NULL or points to a valid or released Arrow stream.
    pub(super) unsafe fn take(stream: *mut FFI_ArrowArrayStream) -> Self {
        if stream.is_null() {
            return Self(None);
        }
        // SAFETY: by contract; the caller's struct is left released.
        Self(Some(unsafe { FFI_ArrowArrayStream::from_raw(stream) }))
    }

    pub(super) fn optional(self, what: &str) -> Result<Option<Reader>> {
        let Some(stream) = self.0 else { return Ok(None) };
        let reader = Imported::new(stream).map_err(|e| Error::invalid(format!("{what}: {e}")))?;
        Ok(Some(Box::new(reader)))
    }

    pub(super) fn required(self, what: &str) -> Result<Reader> {
        self.optional(what)?.ok_or_else(|| null(what))
    }
}

/// As arrow-rs's `ArrowArrayStreamReader`, but buffers that are not aligned (the C Data Interface only
/// recommends it) are copied where arrow-rs would panic.
struct Imported {
    stream: FFI_ArrowArrayStream,
    schema: SchemaRef,
}

/// The next batch of a stream that stays the caller's.
///
/// # Safety
/// `stream` is NULL or points to a valid or released Arrow stream.
pub(super) unsafe fn next_batch(stream: *mut FFI_ArrowArrayStream) -> Result<Option<RecordBatch>> {
    // SAFETY: by contract.
    let stream = unsafe { stream.as_mut() }.ok_or_else(|| null("stream"))?;
    let schema = schema_of(stream)?;
    Ok(pull(stream, &schema)?)
}

fn pull(
    stream: &mut FFI_ArrowArrayStream,
    schema: &SchemaRef,
) -> Result<Option<RecordBatch>, ArrowError> {
    let mut array = FFI_ArrowArray::empty();
    // SAFETY: a live stream, and a place for its next array.
    let code =
        unsafe { stream.get_next.map_or(libc::EINVAL, |f| f(&raw mut *stream, &raw mut array)) };
    if code != 0 {
        return Err(last_error(stream, code));
    }
    if array.is_released() {
        return Ok(None);
    }
    batch(array, schema).map(Some)
}

fn batch(array: FFI_ArrowArray, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    // arrow-rs asserts what a producer may get wrong (children, buffers): an error, not a panic.
    catch_unwind(AssertUnwindSafe(|| batch_unguarded(array, schema))).unwrap_or_else(|panic| {
        let why = panic_text(panic.as_ref());
        Err(ArrowError::CDataInterface(format!("an array does not fit its schema: {why}")))
    })
}

fn batch_unguarded(array: FFI_ArrowArray, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let data_type = DataType::Struct(schema.fields().clone());
    // SAFETY: the producer states that the array is of the stream's schema.
    let mut data = unsafe { from_ffi_and_data_type(array, data_type) }?;
    data.align_buffers();
    let data = unslice(data);
    let rows = data.len();
    let (_, columns, nulls) = StructArray::from(data).into_parts();
    if nulls.is_some_and(|n| n.null_count() > 0) {
        return Err(ArrowError::CDataInterface("a record batch may not have null rows".into()));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
}

/// arrow-rs (58) slices the children of a struct twice where it is the item of a sliced fixed-size
/// list: cut structs and such lists to their own rows first, at every level.
fn unslice(data: ArrayData) -> ArrayData {
    if data.child_data().is_empty() {
        return data;
    }
    let children = data.child_data().iter().cloned().map(unslice);
    let (len, offset) = (data.len(), data.offset());
    let per_row = match data.data_type() {
        DataType::Struct(_) => 1,
        DataType::FixedSizeList(_, width) => usize::try_from(*width).unwrap_or(0),
        _ => {
            let children = children.collect();
            // SAFETY: the same rows as before, which the producer vouches for.
            return unsafe { data.into_builder().child_data(children).build_unchecked() };
        }
    };
    let children = children
        .map(|child| make_array(child).slice(offset * per_row, len * per_row).to_data())
        .collect();
    let builder =
        ArrayData::builder(data.data_type().clone()).len(len).nulls(data.nulls().cloned());
    // SAFETY: as above.
    unsafe { builder.child_data(children).build_unchecked() }
}

impl Imported {
    fn new(mut stream: FFI_ArrowArrayStream) -> Result<Self, ArrowError> {
        let schema = schema_of(&mut stream)?;
        Ok(Self { stream, schema })
    }
}

/// The schema of a stream that stays as it is.
fn schema_of(stream: &mut FFI_ArrowArrayStream) -> Result<SchemaRef, ArrowError> {
    let (Some(_), Some(get_schema)) = (stream.release, stream.get_schema) else {
        return Err(ArrowError::CDataInterface("the stream has been released already".into()));
    };
    let mut schema = FFI_ArrowSchema::empty();
    // SAFETY: a live stream, and a place for its schema.
    let code = unsafe { get_schema(&raw mut *stream, &raw mut schema) };
    if code != 0 {
        return Err(last_error(stream, code));
    }
    import_schema(&schema).map(SchemaRef::new)
}

/// arrow-rs asserts what a producer may get wrong (a released schema, no format): an error, not a panic.
pub(super) fn import_schema(schema: &FFI_ArrowSchema) -> Result<Schema, ArrowError> {
    catch_unwind(AssertUnwindSafe(|| Schema::try_from(schema))).unwrap_or_else(|panic| {
        let why = panic_text(panic.as_ref());
        Err(ArrowError::CDataInterface(format!("a released or malformed schema: {why}")))
    })
}

fn last_error(stream: &mut FFI_ArrowArrayStream, code: i32) -> ArrowError {
    let text = stream
        .get_last_error
        // SAFETY: a live stream; the text is valid until the next call.
        .map(|f| unsafe { f(&raw mut *stream) })
        .filter(|text| !text.is_null())
        // SAFETY: as above.
        .map(|text| unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned());
    ArrowError::CDataInterface(
        text.unwrap_or_else(|| format!("the stream failed with code {code}")),
    )
}

impl Iterator for Imported {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        pull(&mut self.stream, &self.schema).transpose()
    }
}

impl RecordBatchReader for Imported {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

/// # Safety
/// `schema` is NULL or points to a valid or released Arrow schema.
pub(super) unsafe fn take_schema(schema: *mut FFI_ArrowSchema) -> Option<FFI_ArrowSchema> {
    if schema.is_null() {
        return None;
    }
    // SAFETY: by contract; the caller's struct is left released.
    Some(unsafe { FFI_ArrowSchema::from_raw(schema) })
}

/// A reader whose panics become errors of the stream.
struct Guarded<R: RecordBatchReader> {
    schema: SchemaRef,
    inner: ManuallyDrop<R>,
    dead: bool,
}

impl<R: RecordBatchReader> Iterator for Guarded<R> {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.dead {
            return None;
        }
        let next = catch_unwind(AssertUnwindSafe(|| {
            inject_panic("stream");
            self.inner.next()
        }));
        next.unwrap_or_else(|panic| {
            self.dead = true;
            Some(Err(panic_error("the stream", panic.as_ref()).into()))
        })
    }
}

impl<R: RecordBatchReader> RecordBatchReader for Guarded<R> {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

impl<R: RecordBatchReader> Drop for Guarded<R> {
    fn drop(&mut self) {
        // SAFETY: dropped here and nowhere else.
        let inner = unsafe { ManuallyDrop::take(&mut self.inner) };
        let _ = catch_unwind(AssertUnwindSafe(move || drop(inner)));
    }
}

pub(super) fn export(reader: impl RecordBatchReader + Send + 'static) -> FFI_ArrowArrayStream {
    let guarded =
        Guarded { schema: reader.schema(), inner: ManuallyDrop::new(reader), dead: false };
    FFI_ArrowArrayStream::new(Box::new(guarded))
}

pub(super) fn export_batch(batch: RecordBatch) -> FFI_ArrowArrayStream {
    let schema = batch.schema();
    export(RecordBatchIterator::new([Ok(batch)], schema))
}
