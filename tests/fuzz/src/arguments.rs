//! The arguments themselves: NULL in each place, lengths, option structs of any size, tokens that are
//! cancelled, progress contexts and their end.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::abi::{
    ArrowSchema, ArrowStream, CallOptions, Check, ExecutorOptions, INVALID_ARGUMENT, OK, PANIC,
    RawBytes, Status, broken,
};
use crate::columns;
use crate::corpus;
use crate::tables::{self, Program};
use crate::targets::Fuzz;

/// What happened to a progress context: events, ends, events after the end.
#[derive(Default)]
struct Watch {
    ended: AtomicU64,
    after: AtomicU64,
}

unsafe extern "C" fn on_progress(context: *mut c_void, _: *const c_void) {
    // NULL where the options were too short for it.
    // SAFETY: a `Watch` that outlives the call; so below.
    if let Some(watch) = unsafe { context.cast::<Watch>().as_ref() }
        && watch.ended.load(SeqCst) > 0
    {
        watch.after.fetch_add(1, SeqCst);
    }
}

unsafe extern "C" fn on_end(context: *mut c_void) {
    unsafe { &*context.cast::<Watch>() }.ended.fetch_add(1, SeqCst);
}

const SIZES: &[u32] = &[
    64,
    64,
    64,
    64,
    72,
    4096,
    8,
    16,
    24,
    32,
    40,
    48,
    56,
    12,
    63,
    65,
    0,
    1,
    4,
    7,
    4097,
    1 << 16,
    u32::MAX,
];

/// Call options in a place of their own, of the size that they state.
struct Options {
    place: Vec<u64>,
    size: u32,
}

impl Options {
    fn new(program: &mut Program<'_>, token: *const c_void, watch: &Watch) -> Self {
        let size = SIZES[program.below(SIZES.len())];
        let storage: &[&[u8]] = &[
            b"",
            b" ",
            b"{}",
            b"{\"a\":\"b\"}",
            b"{\"base:s3://a/b:c\":\"d\"}",
            b"{\"base:\":\"\"}",
            b"{\"base_1.a\":\"b\"}",
            b"{\"a\":1}",
            b"[]",
            b"null",
            b"{",
            b"\xff",
            b"\0",
        ];
        let storage = storage[program.below(storage.len())];
        let mut full = CallOptions::empty();
        full.struct_size = size;
        // Mostly none set: the flag, or unknown ones.
        full.flags = [0, 0, 0, 1, 2, 1 << 31, u32::MAX][program.below(7)];
        if program.below(2) == 1 {
            (full.storage_options, full.storage_options_len) = (storage.as_ptr(), storage.len());
        } else if program.below(8) == 0 {
            full.storage_options_len = [1, usize::MAX][program.below(2)];
        }
        full.timeout_ms = [0, 0, 10_000, u64::MAX, 1][program.below(5)];
        full.cancel = token;
        if program.below(2) == 1 {
            full.progress = Some(on_progress);
        }
        if program.below(2) == 1 {
            full.progress_finalizer = Some(on_end);
        }
        full.progress_context = ptr::from_ref(watch).cast_mut().cast();
        // What lies behind is another's: a later version's fields, or nobody's.
        let mut place = vec![0x5a5a_5a5a_5a5a_5a5a; 512];
        // SAFETY: 64 bytes of a plain struct into a place of 4096.
        unsafe { place.as_mut_ptr().cast::<CallOptions>().write(full) };
        // A field that the stated size cuts is not the caller's to set.
        let cut = (size as usize / 8).min(512);
        if !size.is_multiple_of(8) && cut < 8 && cut > 0 {
            place[cut] = 0;
        }
        Self { place, size }
    }

    fn pointer(&self) -> *const CallOptions {
        self.place.as_ptr().cast()
    }

    fn is_readable(&self) -> bool {
        (8..=4096).contains(&self.size)
    }

    fn has_finalizer(&self) -> bool {
        // SAFETY: a whole struct is there, whatever size it states.
        let full = unsafe { &*self.pointer() };
        (64..=4096).contains(&self.size) && full.progress_finalizer.is_some()
    }
}

pub fn run(fuzz: &Fuzz<'_>, data: &[u8]) -> Check<()> {
    let mut program = Program(data);
    let f = &fuzz.api.f;
    let which = program.below(16);
    // SAFETY: a token, freed below.
    let token = unsafe { (f.cancel_token_new)() };
    let cancel = program.below(4) > 0;
    if cancel {
        // SAFETY: live.
        unsafe { (f.cancel_token_cancel)(token) };
    }
    let give_token = program.below(8) > 0;
    let watch = Watch::default();
    let options = Options::new(&mut program, if give_token { token } else { ptr::null() }, &watch);
    let options_null = program.below(4) == 0;
    let opts = if options_null { ptr::null() } else { options.pointer() };
    let executor_null = program.below(6) == 0;
    let handle = if executor_null { ptr::null() } else { fuzz.executor.handle.cast_const() };
    let out_null = program.below(6) == 0;
    let error_null = program.below(6) == 0;

    let work = &fuzz.corpus.work[program.below(fuzz.corpus.work.len())];
    let descriptor = match which {
        0 => &work.spec,
        5 | 14 => work.tasks.first().unwrap_or(&work.job),
        _ => &work.job,
    };
    let (bytes, len, bytes_null) = match program.below(8) {
        0 => (ptr::null(), 0, false),
        1 => (ptr::null(), [1, 100, usize::MAX][program.below(3)], true),
        2 if program.below(2) == 0 => (descriptor.as_ptr(), usize::MAX, true),
        2 => (descriptor.as_ptr(), 0, false),
        3 => (descriptor.as_ptr(), program.below(descriptor.len().min(256)), false),
        _ => (descriptor.as_ptr(), descriptor.len(), false),
    };

    let stream_null = program.below(4) == 0;
    let table = tables::build(&fuzz.corpus, &mut program).table;
    let (mut stream, released) = columns::export(table);
    let in_stream: *mut ArrowStream = if stream_null { ptr::null_mut() } else { &mut stream };
    let (mut schema, schema_released) = columns::export_schema(corpus::people(0).columns);
    let in_schema: *mut ArrowSchema = if stream_null { ptr::null_mut() } else { &mut schema };

    let mut out = RawBytes { data: ptr::null(), len: 0 };
    let out_bytes: *mut RawBytes = if out_null { ptr::null_mut() } else { &mut out };
    let mut made = ArrowStream::empty();
    let out_stream: *mut ArrowStream = if out_null { ptr::null_mut() } else { &mut made };
    let partition = b"a";
    let number = program.byte() as i32 - 100;

    let verb = matches!(which, 0 | 2..=7 | 13..=15);
    let mut takes_stream = false;
    let mut takes_schema = false;
    // SAFETY: everything is what the header asks for, NULL where it says how that is answered.
    let mut call = |error: *mut *mut c_void| -> Status {
        unsafe {
            match which {
                0 => {
                    takes_schema = !stream_null;
                    (f.prepare)(handle, bytes, len, in_schema, opts, out_bytes, error)
                }
                1 => (f.job_task)(bytes, len, partition.as_ptr(), 1, out_bytes, error),
                2 => {
                    takes_stream = !stream_null;
                    (f.plan)(handle, bytes, len, in_stream, opts, out_stream, error)
                }
                3 => {
                    takes_stream = !stream_null;
                    (f.commit)(handle, bytes, len, in_stream, opts, out_bytes, error)
                }
                4 => {
                    takes_stream = !stream_null;
                    (f.abort)(handle, bytes, len, in_stream, opts, out_bytes, error)
                }
                5 | 6 => {
                    takes_stream = !stream_null;
                    (f.execute)(handle, bytes, len, in_stream, opts, out_stream, error)
                }
                7 => {
                    takes_stream = !stream_null;
                    (f.execute_all)(handle, in_stream, opts, out_stream, error)
                }
                8 => (f.convert)(bytes, len, number, out_bytes, error),
                9 => {
                    takes_stream = !stream_null;
                    (f.table_to_rows)(in_stream, out_bytes, error)
                }
                10 => (f.next_row)(in_stream, out_bytes, error),
                11 => (f.rows_to_table)(bytes, len, out_stream, error),
                13 => {
                    let task = work.tasks.first().unwrap_or(&work.job);
                    let (task, size) = (task.as_ptr(), task.len());
                    let (made, made_len) = (b"[]".as_ptr(), 2);
                    (f.adopt)(
                        handle, bytes, len, task, size, made, made_len, opts, out_stream, error,
                    )
                }
                14 => (f.read)(handle, bytes, len, opts, out_stream, error),
                15 => {
                    takes_stream = !stream_null;
                    (f.read_all)(handle, in_stream, opts, out_stream, error)
                }
                _ => executor(fuzz, &mut program, out_null, error),
            }
        }
    };
    let (status, message) = if error_null {
        fuzz.api.slot.enter();
        let status = call(ptr::null_mut());
        fuzz.api.slot.leave(status);
        (status, String::new())
    } else {
        match fuzz.api.call("a function with any arguments", call)? {
            Ok(()) => (OK, String::new()),
            Err(failure) => (failure.code, failure.message),
        }
    };
    if status == PANIC {
        broken!("function {which} panicked");
    }
    let empty_stream = stream_null && matches!(which, 7 | 9 | 10 | 15);
    let bad = out_null
        || (verb && executor_null)
        || empty_stream
        || (bytes_null && !matches!(which, 7 | 9 | 10 | 12 | 15));
    if bad && status != INVALID_ARGUMENT {
        broken!("function {which} with NULL or a false size answers {status}: {message}");
    }
    let stopped = cancel && give_token && options.size >= 40;
    if verb && !options_null && status == OK && (!options.is_readable() || stopped) {
        // A commit that was made is made; a stream of results says in its rows how they ended.
        if !stopped || !matches!(which, 3 | 7) {
            broken!("function {which} succeeded with a false size or a cancelled token");
        }
    }

    // Let everything go, then look at what was promised of it.
    drop(made);
    // SAFETY: from the library, or NULL.
    unsafe { (f.bytes_free)(&mut out) };
    if (takes_stream && stream.release.is_some()) || (takes_schema && schema.release.is_some()) {
        broken!("function {which} left a stream or schema that it was handed");
    }
    drop(stream);
    if let Some(release) = schema.release {
        // SAFETY: not taken.
        unsafe { release(&mut schema) };
    }
    // SAFETY: made above, freed once.
    unsafe { (f.cancel_token_free)(token) };
    let settled = || released.live.load(SeqCst) == 0 && schema_released.live.load(SeqCst) == 0;
    for _ in 0..500 {
        if settled() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    if !settled() {
        broken!("function {which} did not release what it took");
    }
    let expected = u64::from(verb && !options_null && options.has_finalizer());
    let ended = watch.ended.load(SeqCst);
    if ended != expected || watch.after.load(SeqCst) != 0 {
        broken!("function {which}: {ended} ends of a progress context for {expected}");
    }
    if verb { fuzz.touched() } else { Ok(()) }
}

/// SAFETY: `error` is NULL or a place for one pointer.
unsafe fn executor(
    fuzz: &Fuzz<'_>,
    program: &mut Program<'_>,
    out_null: bool,
    error: *mut *mut c_void,
) -> Status {
    let f = &fuzz.api.f;
    let mut made = ptr::null_mut();
    let out: *mut *mut c_void = if out_null { ptr::null_mut() } else { &mut made };
    let size = SIZES[program.below(SIZES.len())];
    let threads = [1, 1, 4097, u32::MAX][program.below(4)];
    let budget = [0, 1, 1 << 20, u64::MAX][program.below(4)];
    let mut place = vec![0x5a5a_5a5a_5a5a_5a5a_u64; 512];
    let options =
        ExecutorOptions { struct_size: size, num_threads: threads, memory_budget: budget };
    unsafe {
        place.as_mut_ptr().cast::<ExecutorOptions>().write(options);
        let status = (f.executor_new)(place.as_ptr().cast(), out, error);
        (f.executor_free)(made);
        status
    }
}
