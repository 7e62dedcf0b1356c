//! Arrow tables as plain values, handed in over the C Data Interface with the faults that a producer may
//! have; `import` reads the library's own.

use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use crate::abi::{ArrowArray, ArrowSchema, ArrowStream};

/// The values of a column; formats are those of the C Data Interface.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Fixed width in bytes: integers, floats, timestamps, durations.
    Fixed {
        format: String,
        width: usize,
        data: Vec<u8>,
    },
    /// `u` `z` (32-bit offsets), `U` `Z` (64-bit), or a dictionary of `u` with 32-bit keys.
    Text {
        format: &'static str,
        dictionary: bool,
        items: Vec<Vec<u8>>,
    },
    Bool(Vec<bool>),
    /// `+l`, or `+L` where large.
    List {
        large: bool,
        lengths: Vec<usize>,
        child: Box<Column>,
    },
    Struct(Vec<Column>),
    Null(usize),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    pub name: String,
    pub nullable: bool,
    pub values: Values,
    /// Which rows are not null; none = all.
    pub valid: Option<Vec<bool>>,
    /// Said in the schema in place of the true format.
    pub false_format: Option<Vec<u8>>,
    /// Buffers that the array has too few.
    pub missing_buffers: i64,
    /// Children that the array has too few.
    pub missing_children: i64,
}

impl Column {
    pub fn new(name: &str, values: Values) -> Self {
        Self {
            name: name.to_owned(),
            nullable: false,
            values,
            valid: None,
            false_format: None,
            missing_buffers: 0,
            missing_children: 0,
        }
    }

    pub fn len(&self) -> usize {
        match &self.values {
            Values::Fixed { width, data, .. } => data.len() / width,
            Values::Text { items, .. } => items.len(),
            Values::Bool(items) => items.len(),
            Values::List { lengths, .. } => lengths.len(),
            Values::Struct(children) => children.first().map_or(0, Column::len),
            Values::Null(len) => *len,
        }
    }

    pub fn is_null(&self, row: usize) -> bool {
        self.valid.as_ref().is_some_and(|v| !v[row]) || matches!(self.values, Values::Null(_))
    }

    /// The rows at these places, in this order.
    pub fn take(&self, rows: &[usize]) -> Self {
        fn pick<T: Clone>(items: &[T], rows: &[usize]) -> Vec<T> {
            rows.iter().map(|r| items[*r].clone()).collect()
        }
        let values = match &self.values {
            Values::Fixed { format, width, data } => Values::Fixed {
                format: format.clone(),
                width: *width,
                data: rows
                    .iter()
                    .flat_map(|r| &data[r * width..(r + 1) * width])
                    .copied()
                    .collect(),
            },
            Values::Text { format, dictionary, items } => {
                Values::Text { format, dictionary: *dictionary, items: pick(items, rows) }
            }
            Values::Bool(items) => Values::Bool(pick(items, rows)),
            Values::List { large, lengths, child } => {
                let begin = |row: usize| lengths[..row].iter().sum::<usize>();
                let inner: Vec<usize> =
                    rows.iter().flat_map(|r| begin(*r)..begin(*r) + lengths[*r]).collect();
                Values::List {
                    large: *large,
                    lengths: pick(lengths, rows),
                    child: Box::new(child.take(&inner)),
                }
            }
            Values::Struct(children) => {
                Values::Struct(children.iter().map(|c| c.take(rows)).collect())
            }
            Values::Null(_) => Values::Null(rows.len()),
        };
        let valid = self.valid.as_ref().map(|v| pick(v, rows));
        Self { values, valid, ..self.clone() }
    }
}

// ---- out ----

/// How many of a stream's structs are not released; 0 in the end.
#[derive(Default)]
pub struct Released {
    pub live: AtomicI64,
}

/// What keeps an exported array or schema alive.
struct Held<T> {
    released: Arc<Released>,
    children: Vec<*mut T>,
    dictionary: *mut T,
    buffers: Vec<*const c_void>,
    _owned: Vec<Vec<u8>>,
    _strings: Vec<CString>,
}

trait Node {
    fn release_fn(&mut self) -> &mut Option<unsafe extern "C" fn(*mut Self)>;
    fn private(&mut self) -> &mut *mut c_void;
}
impl Node for ArrowSchema {
    fn release_fn(&mut self) -> &mut Option<unsafe extern "C" fn(*mut Self)> {
        &mut self.release
    }
    fn private(&mut self) -> &mut *mut c_void {
        &mut self.private_data
    }
}
impl Node for ArrowArray {
    fn release_fn(&mut self) -> &mut Option<unsafe extern "C" fn(*mut Self)> {
        &mut self.release
    }
    fn private(&mut self) -> &mut *mut c_void {
        &mut self.private_data
    }
}

unsafe extern "C" fn release<T: Node>(node: *mut T) {
    // SAFETY: the consumer releases a node of ours once; children were leaked by `hold`.
    unsafe {
        let node = &mut *node;
        if node.private().is_null() || node.release_fn().is_none() {
            // No counter is left to note it in: a second release is a crash.
            std::process::abort();
        }
        let held = Box::from_raw(node.private().cast::<Held<T>>());
        for child in held.children.iter().chain([&held.dictionary]).filter(|c| !c.is_null()) {
            let mut child = Box::from_raw(*child);
            // A consumer may have moved a child out: then it is released there.
            if let Some(release) = *child.release_fn() {
                release(&mut *child);
            }
        }
        held.released.live.fetch_sub(1, SeqCst);
        *node.private() = std::ptr::null_mut();
        *node.release_fn() = None;
    }
}

fn hold<T: Node>(mut node: T, held: Held<T>) -> T {
    held.released.live.fetch_add(1, SeqCst);
    *node.private() = Box::into_raw(Box::new(held)).cast();
    *node.release_fn() = Some(release::<T>);
    node
}

fn held<T>(released: &Arc<Released>, children: Vec<T>) -> Held<T> {
    Held {
        released: released.clone(),
        children: children.into_iter().map(|c| Box::into_raw(Box::new(c))).collect(),
        dictionary: std::ptr::null_mut(),
        buffers: Vec::new(),
        _owned: Vec::new(),
        _strings: Vec::new(),
    }
}

fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes.iter().copied().filter(|b| *b != 0).collect::<Vec<_>>()).unwrap_or_default()
}

fn schema(column: &Column, released: &Arc<Released>) -> ArrowSchema {
    let children: Vec<ArrowSchema> = match &column.values {
        Values::Struct(children) => children.iter().map(|c| schema(c, released)).collect(),
        Values::List { child, .. } => vec![schema(child, released)],
        _ => Vec::new(),
    };
    let format: &[u8] = match &column.values {
        Values::Fixed { format, .. } => format.as_bytes(),
        Values::Text { dictionary: true, .. } => b"i",
        Values::Text { format, .. } => format.as_bytes(),
        Values::Bool(_) => b"b",
        Values::List { large: false, .. } => b"+l",
        Values::List { large: true, .. } => b"+L",
        Values::Struct(_) => b"+s",
        Values::Null(_) => b"n",
    };
    let format = column.false_format.as_deref().unwrap_or(format);
    let mut held = held(released, children);
    held._strings = vec![c_string(format), c_string(column.name.as_bytes())];
    if let Values::Text { dictionary: true, format, .. } = &column.values {
        let items = Values::Text { format, dictionary: false, items: Vec::new() };
        held.dictionary = Box::into_raw(Box::new(schema(&Column::new("", items), released)));
    }
    let mut node = ArrowSchema::empty();
    node.format = held._strings[0].as_ptr();
    node.name = held._strings[1].as_ptr();
    node.flags = if column.nullable { 2 } else { 0 };
    node.n_children = held.children.len() as i64;
    node.children = held.children.as_mut_ptr();
    node.dictionary = held.dictionary;
    hold(node, held)
}

fn bits(items: &[bool]) -> Vec<u8> {
    let mut out = vec![0; items.len().div_ceil(8)];
    for (i, _) in items.iter().enumerate().filter(|(_, set)| **set) {
        out[i / 8] |= 1 << (i % 8);
    }
    out
}

fn offsets(large: bool, lengths: impl Iterator<Item = usize>) -> Vec<u8> {
    let mut end = 0;
    let mut ends = vec![0];
    ends.extend(lengths.map(|n| {
        end += n;
        end
    }));
    let wide = |e: &usize| (*e as i64).to_le_bytes().to_vec();
    let narrow = |e: &usize| (*e as i32).to_le_bytes().to_vec();
    ends.iter().flat_map(if large { wide } else { narrow }).collect()
}

fn array(column: &Column, released: &Arc<Released>) -> ArrowArray {
    let children: Vec<ArrowArray> = match &column.values {
        Values::Struct(children) => children.iter().map(|c| array(c, released)).collect(),
        Values::List { child, .. } => vec![array(child, released)],
        _ => Vec::new(),
    };
    let mut held = held(released, children);
    let mut data: Vec<Vec<u8>> = match &column.values {
        Values::Fixed { data, .. } => vec![data.clone()],
        Values::Text { dictionary: true, format, items } => {
            let keys: Vec<u8> = (0..items.len() as i32).flat_map(i32::to_le_bytes).collect();
            let items = Values::Text { format, dictionary: false, items: items.clone() };
            held.dictionary = Box::into_raw(Box::new(array(&Column::new("", items), released)));
            vec![keys]
        }
        Values::Text { format, items, .. } => {
            let large = matches!(*format, "U" | "Z");
            vec![offsets(large, items.iter().map(Vec::len)), items.concat()]
        }
        Values::Bool(items) => vec![bits(items)],
        Values::List { large, lengths, .. } => vec![offsets(*large, lengths.iter().copied())],
        Values::Struct(_) | Values::Null(_) => Vec::new(),
    };
    let mut node = ArrowArray::empty();
    node.length = column.len() as i64;
    if !matches!(column.values, Values::Null(_)) {
        data.insert(0, column.valid.as_deref().map_or(Vec::new(), bits));
        node.null_count = column.valid.iter().flatten().filter(|v| !**v).count() as i64;
    }
    // Empty data buffers are not NULL: eight bytes nobody reads. An absent validity is.
    held.buffers = data
        .iter_mut()
        .enumerate()
        .map(|(i, b)| {
            if i == 0 && column.valid.is_none() {
                return std::ptr::null();
            }
            b.extend_from_slice(&[0; 8]);
            b.as_ptr().cast()
        })
        .collect();
    held._owned = data;
    node.n_buffers = (held.buffers.len() as i64 - column.missing_buffers).max(0);
    node.n_children = (held.children.len() as i64 - column.missing_children).max(0);
    node.buffers = held.buffers.as_mut_ptr();
    node.children = held.children.as_mut_ptr();
    node.dictionary = held.dictionary;
    hold(node, held)
}

/// A table to be handed in, with the faults of its stream.
#[derive(Debug, Clone, Default)]
pub struct Table {
    pub columns: Vec<Column>,
    pub rows: usize,
    /// The rows of each batch; empty = all in one.
    pub batches: Vec<Vec<usize>>,
    /// Fail `get_schema` with this errno.
    pub fail_schema: Option<i32>,
    /// Fail `get_next` at this batch, with this errno.
    pub fail_next: Option<(usize, i32)>,
    /// Whether a failure has a message.
    pub silent: bool,
    /// Released before it is handed in.
    pub released: bool,
    /// The batches themselves say that rows are null.
    pub null_rows: bool,
}

struct Producer {
    table: Table,
    next: usize,
    released: Arc<Released>,
}

fn root(table: &Table, rows: Option<&[usize]>) -> Column {
    let columns = table.columns.iter();
    let columns = columns.map(|c| rows.map_or_else(|| c.clone(), |r| c.take(r))).collect();
    let mut root = Column::new("", Values::Struct(columns));
    if table.null_rows && root.len() > 0 {
        let mut valid = vec![true; root.len()];
        valid[0] = false;
        root.valid = Some(valid);
    }
    root
}

unsafe fn producer<'a>(stream: *mut ArrowStream) -> &'a mut Producer {
    // SAFETY: set by `export`, live until the stream's release.
    unsafe { &mut *(*stream).private_data.cast::<Producer>() }
}

unsafe extern "C" fn get_schema(stream: *mut ArrowStream, out: *mut ArrowSchema) -> i32 {
    // SAFETY: a live stream of ours, and a place for its schema; so below.
    unsafe {
        let producer = producer(stream);
        if let Some(code) = producer.table.fail_schema {
            return code;
        }
        out.write(schema(&root(&producer.table, None), &producer.released));
    }
    0
}

unsafe extern "C" fn get_next(stream: *mut ArrowStream, out: *mut ArrowArray) -> i32 {
    unsafe {
        let producer = producer(stream);
        let at = producer.next;
        producer.next += 1;
        match producer.table.fail_next {
            Some((fail, code)) if fail == at => return code,
            _ => {}
        }
        let table = &producer.table;
        let rows = table.batches.get(at).map(Vec::as_slice);
        if rows.is_some() || (table.batches.is_empty() && at == 0) {
            out.write(array(&root(table, rows), &producer.released));
        } else {
            out.write(ArrowArray::empty());
        }
    }
    0
}

unsafe extern "C" fn get_last_error(stream: *mut ArrowStream) -> *const c_char {
    let silent = unsafe { producer(stream).table.silent };
    if silent { std::ptr::null() } else { c"the producer gave up".as_ptr() }
}

unsafe extern "C" fn release_stream(stream: *mut ArrowStream) {
    unsafe {
        let producer = Box::from_raw((*stream).private_data.cast::<Producer>());
        producer.released.live.fetch_sub(1, SeqCst);
        (*stream).private_data = std::ptr::null_mut();
        (*stream).release = None;
    }
}

/// The table as a stream, and the count of what it made that is not released.
pub fn export(table: Table) -> (ArrowStream, Arc<Released>) {
    let released = Arc::new(Released::default());
    let mut stream = ArrowStream::empty();
    if table.released {
        return (stream, released);
    }
    released.live.fetch_add(1, SeqCst);
    let producer = Box::new(Producer { table, next: 0, released: released.clone() });
    stream.get_schema = Some(get_schema);
    stream.get_next = Some(get_next);
    stream.get_last_error = Some(get_last_error);
    stream.release = Some(release_stream);
    stream.private_data = Box::into_raw(producer).cast();
    (stream, released)
}

/// A schema by itself, as `prepare` takes it.
pub fn export_schema(columns: Vec<Column>) -> (ArrowSchema, Arc<Released>) {
    let released = Arc::new(Released::default());
    (schema(&Column::new("", Values::Struct(columns)), &released), released)
}
