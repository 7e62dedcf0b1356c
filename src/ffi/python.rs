//! The destructor of Arrow PyCapsules. Here because a Python callback may not run at interpreter exit.

use std::ffi::{CStr, c_char, c_void};

use super::stream::{FFI_ArrowArrayStream, FFI_ArrowSchema};

/// CPython's `PyCapsule_GetPointer`, from the interpreter that loaded this library.
fn capsule_pointer(capsule: *mut c_void, name: &CStr) -> *mut c_void {
    type GetPointer = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
    // SAFETY: a lookup by name.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"PyCapsule_GetPointer".as_ptr()) };
    if symbol.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: CPython documents this signature.
    let get: GetPointer = unsafe { std::mem::transmute(symbol) };
    // SAFETY: called by CPython with a live capsule, holding the GIL.
    unsafe { get(capsule, name.as_ptr()) }
}

/// A `PyCapsule_Destructor` for capsules named `arrow_array_stream` that hold a struct from
/// `lance_tasks_alloc_stream`: releases the stream where nobody took it, and frees the struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_stream_capsule_free(capsule: *mut c_void) {
    let pointer = capsule_pointer(capsule, c"arrow_array_stream");
    // SAFETY: by contract.
    unsafe { lance_tasks_free_stream(pointer.cast()) };
}

/// Allocate an empty (released) Arrow stream struct; free it with `lance_tasks_free_stream`.
#[unsafe(no_mangle)]
pub extern "C" fn lance_tasks_alloc_stream() -> *mut FFI_ArrowArrayStream {
    Box::into_raw(Box::new(FFI_ArrowArrayStream::empty()))
}

/// Release an Arrow stream, where it is not released, and free its struct. NULL is a no-op.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_free_stream(stream: *mut FFI_ArrowArrayStream) {
    if !stream.is_null() {
        // SAFETY: made by `lance_tasks_alloc_stream`, freed once; its drop calls release.
        drop(unsafe { Box::from_raw(stream) });
    }
}

/// Allocate an empty (released) Arrow schema struct; free it with `lance_tasks_free_schema`.
#[unsafe(no_mangle)]
pub extern "C" fn lance_tasks_alloc_schema() -> *mut FFI_ArrowSchema {
    Box::into_raw(Box::new(FFI_ArrowSchema::empty()))
}

/// Release an Arrow schema, where it is not released, and free its struct. NULL is a no-op.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_free_schema(schema: *mut FFI_ArrowSchema) {
    if !schema.is_null() {
        // SAFETY: made by `lance_tasks_alloc_schema`, freed once; its drop calls release.
        drop(unsafe { Box::from_raw(schema) });
    }
}
