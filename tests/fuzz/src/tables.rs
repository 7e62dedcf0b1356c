//! Tables that are near to valid ones: a program of bytes says what is changed, so that an input can be
//! stored, replayed and made smaller.

use crate::columns::{Column, Table, Values};
use crate::corpus::Corpus;
use crate::mutate;
use crate::rng::Rng;

/// Bytes that are read as choices; zeros without end.
pub struct Program<'a>(pub &'a [u8]);

impl Program<'_> {
    pub fn byte(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first)
    }

    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { self.byte() % n }
    }

    pub fn seed(&mut self) -> u64 {
        (0..4).fold(0, |a, _| a << 8 | self.byte() as u64)
    }

    pub fn is_done(&self) -> bool {
        self.0.is_empty()
    }
}

/// A table, and what must become of it.
pub struct Built {
    pub table: Table,
    /// Which of the corpus's tables it was.
    pub base: usize,
    /// The rows that must come back as they were, in this order; none = it may fail or say else.
    pub same: Option<Vec<usize>>,
}

/// The columns of a table of results that hold numbers and times.
const NUMBERS: &[&str] = &[
    "read_version",
    "rows_in",
    "rows_out",
    "bytes_read",
    "bytes_written",
    "started_at",
    "elapsed",
    "peak_memory",
    "pid",
];
const OTHERS: &[&str] = &[
    "job_id",
    "task_id",
    "attempt_id",
    "operation",
    "status",
    "dataset_uri",
    "payload",
    "fragments",
    "index_segments",
    "files",
    "host",
    "versions",
];

/// Why a table may not be taken for results (else for tasks), where that can be seen from outside.
pub fn refused(table: &Table, results: bool) -> Option<String> {
    if table.released || table.fail_schema.is_some() {
        return Some("its stream gave no schema".into());
    }
    let (required, numbers) = if results { (OTHERS, NUMBERS) } else { (&["payload"][..], &[][..]) };
    for name in required.iter().chain(numbers) {
        let Some(column) = table.columns.iter().find(|c| c.name == *name) else {
            return Some(format!("column {name} is missing"));
        };
        if let Some(row) = (0..column.len()).find(|row| column.is_null(*row)) {
            return Some(format!("column {name}, row {row} is null"));
        }
    }
    for name in numbers {
        let column = table.columns.iter().find(|c| c.name == *name)?;
        if let Values::Text { items, .. } = &column.values
            && let Some(item) = items.iter().find(|i| !i.iter().any(u8::is_ascii_digit))
        {
            return Some(format!("column {name} is {:?}", String::from_utf8_lossy(item)));
        }
    }
    None
}

/// Build a table of the corpus: the first byte says which, the others how it is changed.
pub fn build(corpus: &Corpus, program: &mut Program<'_>) -> Built {
    let base = program.below(corpus.tables.len());
    let table = corpus.tables[base].clone();
    let rows = (0..table.rows).collect();
    let mut built = Built { table, base, same: Some(rows) };
    while !program.is_done() {
        change(&mut built, program);
    }
    built
}

fn change(built: &mut Built, program: &mut Program<'_>) {
    let op = program.below(24);
    let table = &mut built.table;
    let rows = table.rows;
    let at = program.below(table.columns.len());
    let width = table.columns.len();
    match op {
        // Changes that lose nothing.
        0..=3 if width > 0 => lossless(&mut table.columns[at], program),
        4 if width > 0 => {
            let other = program.below(width);
            table.columns.swap(at, other);
        }
        5 if rows > 0 => {
            let len = program.below(2 * rows + 1);
            let pick: Vec<usize> = (0..len).map(|_| program.below(rows)).collect();
            table.columns = table.columns.iter().map(|c| c.take(&pick)).collect();
            let same = built.same.take();
            built.same = same.map(|same| pick.iter().map(|p| same[*p]).collect());
            table.rows = len;
            table.batches.clear();
        }
        6 => {
            // Batches; some may be empty.
            let cuts = program.below(4);
            let mut batches = vec![Vec::new(); cuts + 1];
            let mut to = 0;
            for row in 0..rows {
                to = (to + program.below(2)).min(cuts);
                batches[to].push(row);
            }
            table.batches = batches;
        }
        7 => {
            let values = Values::Bool(vec![true; rows]);
            let name = ["a column of the caller", "", "JOB_ID"][program.below(3)];
            table.columns.insert(at, Column::new(name, values));
        }
        // Changes that are refused mostly, see `refused`.
        8 if width > 0 => {
            table.columns.remove(at);
            built.same = None;
        }
        9 if width > 0 && rows > 0 => {
            let row = program.below(rows);
            table.columns[at].nullable = true;
            null(&mut table.columns[at], row);
            built.same = None;
        }
        10 if width > 0 => {
            let column = &mut table.columns[at];
            if let Values::Fixed { .. } = &column.values {
                let text = ["x", "", "-", "1e99", "99999999999999999999"][program.below(5)];
                let items = vec![text.into(); rows];
                column.values = Values::Text { format: "u", dictionary: false, items };
                column.valid = None;
            }
            built.same = None;
        }
        11 => {
            built.table.fail_next = Some((program.below(3), 1 + program.below(130) as i32));
            built.table.silent = program.below(2) == 0;
            built.same = None;
        }
        12 => {
            built.table.fail_schema = Some(1 + program.below(130) as i32);
            built.table.silent = program.below(2) == 0;
            built.same = None;
        }
        13 => {
            built.table.released = true;
            built.same = None;
        }
        14 => {
            built.table.null_rows = true;
            built.same = None;
        }
        // Anything.
        15 if width > 0 => {
            let name = ["", "x", "job_id", "payload", "attempt_id", "\u{1f600}"][program.below(6)];
            built.table.columns[at].name = name.to_owned();
            built.same = None;
        }
        16 if width > 0 => {
            let copy = table.columns[at].clone();
            let to = program.below(width);
            table.columns.insert(to, copy);
            built.same = None;
        }
        17 | 18 if width > 0 => {
            built.same = None;
            let seed = program.seed();
            value(inner(&mut built.table.columns[at], program), &mut Rng::new(seed, 0));
        }
        19 if width > 0 => {
            built.same = None;
            let column = inner(&mut built.table.columns[at], program);
            kind(column, program);
        }
        20 if width > 0 => {
            built.same = None;
            let column = inner(&mut built.table.columns[at], program);
            let len = column.len();
            if len > 0 {
                column.nullable = program.below(2) == 0;
                let row = program.below(len);
                null(column, row);
            }
        }
        21 if width > 0 => {
            built.same = None;
            // None that would make the array's buffers be taken for larger ones: that breach of the
            // interface cannot be seen by a consumer.
            let formats: &[&[u8]] = &[
                b"",
                b"q",
                b"n",
                b"b",
                b"+s",
                b"+l",
                b"+w:0",
                b"+w:-1",
                b"+w:x",
                b"+w:99999999999999",
                b"w:-3",
                b"d:999,999",
                b"d:x",
                b"tsu",
                b"tDx",
                b"+us:0,1",
                b"+r",
                b"\xff",
            ];
            let column = inner(&mut built.table.columns[at], program);
            column.false_format = Some(formats[program.below(formats.len())].to_vec());
        }
        22 if width > 0 => {
            built.same = None;
            let column = inner(&mut built.table.columns[at], program);
            column.missing_children = program.below(2) as i64;
            column.missing_buffers = 1 - column.missing_children;
        }
        23 => {
            // All columns gone: rows without values.
            built.table.columns.truncate(at);
            built.same = None;
        }
        _ => {}
    }
}

/// A column, or one of its children.
fn inner<'a>(column: &'a mut Column, program: &mut Program<'_>) -> &'a mut Column {
    let go = program.below(3) > 0;
    let is_parent = match &column.values {
        Values::List { .. } => true,
        Values::Struct(children) => !children.is_empty(),
        _ => false,
    };
    if !go || !is_parent {
        return column;
    }
    match &mut column.values {
        Values::List { child, .. } => inner(child, program),
        Values::Struct(children) => {
            let at = program.below(children.len());
            inner(&mut children[at], program)
        }
        _ => unreachable!("a parent"),
    }
}

fn null(column: &mut Column, row: usize) {
    let len = column.len();
    column.valid.get_or_insert_with(|| vec![true; len])[row] = false;
}

/// Another kind that holds the same values, as engines that carried the table may have made.
fn lossless(column: &mut Column, program: &mut Program<'_>) {
    match &mut column.values {
        Values::Text { format, dictionary, .. } => {
            let binary = matches!(*format, "z" | "Z");
            match program.below(3) {
                0 => (*format, *dictionary) = (if binary { "Z" } else { "U" }, false),
                1 if !binary => (*format, *dictionary) = ("u", true),
                _ => (*format, *dictionary) = (if binary { "z" } else { "u" }, false),
            }
        }
        Values::List { large, child, .. } => {
            *large = program.below(2) == 1;
            if program.below(2) == 1 {
                child.name = "element".into();
            }
        }
        _ => {}
    }
    if program.below(2) == 1 {
        column.nullable = true;
    }
}

/// Another value in a random row.
fn value(column: &mut Column, rng: &mut Rng) {
    let len = column.len();
    if len == 0 {
        return;
    }
    let row = rng.below(len);
    match &mut column.values {
        Values::Fixed { width, data, .. } => {
            let value = [0, 1, u64::MAX, 1 << 63, 23, 24, rng.next()][rng.below(7)].to_le_bytes();
            let width = (*width).min(8);
            data[row * width..(row + 1) * width].copy_from_slice(&value[..width]);
        }
        Values::Text { format, items, .. } => {
            let other = rng.pick(items).clone();
            let item = &mut items[row];
            match rng.below(4) {
                0 => *item = other,
                1 => mutate::json(rng, item, &other),
                _ => mutate::bytes(rng, item, &other),
            }
            // Text that is not UTF-8 is the producer's breach of its contract.
            if matches!(*format, "u" | "U") {
                *item = String::from_utf8_lossy(item).into_owned().into_bytes();
            }
        }
        Values::Bool(items) => items[row] = !items[row],
        Values::List { .. } | Values::Struct(_) | Values::Null(_) => {}
    }
}

/// Another kind of column, whose values are others.
fn kind(column: &mut Column, program: &mut Program<'_>) {
    let len = column.len();
    let fixed = |format: &str, width: usize| Values::Fixed {
        format: format.into(),
        width,
        data: vec![program.0.len() as u8; len * width],
    };
    let formats: &[(&str, usize)] = &[
        ("c", 1),
        ("C", 1),
        ("s", 2),
        ("S", 2),
        ("i", 4),
        ("I", 4),
        ("l", 8),
        ("L", 8),
        ("e", 2),
        ("f", 4),
        ("g", 8),
        ("tdD", 4),
        ("tdm", 8),
        ("tts", 4),
        ("ttn", 8),
        ("tss:", 8),
        ("tsn:UTC", 8),
        ("tsu:+05:00", 8),
        ("tDs", 8),
        ("tDn", 8),
        ("tiM", 4),
        ("tin", 16),
        ("d:38,2", 16),
        ("w:16", 16),
        ("w:0", 0),
    ];
    let chosen = program.below(formats.len() + 6);
    column.valid = None;
    column.values = match chosen.checked_sub(formats.len()) {
        None if formats[chosen].1 == 0 => Values::Null(len),
        None => fixed(formats[chosen].0, formats[chosen].1),
        Some(0) => Values::Null(len),
        Some(1) => Values::Bool(vec![true; len]),
        Some(2) => Values::Text { format: "u", dictionary: true, items: vec![b"1".to_vec(); len] },
        Some(3) => Values::Text { format: "z", dictionary: false, items: vec![vec![255]; len] },
        Some(4) => Values::Struct(vec![Column::new("a", Values::Null(len))]),
        Some(_) => Values::List {
            large: false,
            lengths: vec![1; len],
            child: Box::new(Column::new("item", Values::Null(len))),
        },
    };
}
