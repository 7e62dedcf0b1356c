//! Sources cut into tasks.

use super::source::{self, Piece, Reading, Source};
use super::{NewWork, Rows, WriteState, WriteWork};

/// Files of unknown row counts are put together up to this many bytes.
const TASK_BYTES: u64 = 256 << 20;

/// Cut the sources into tasks. Where row counts are known, at multiples of whole files; the last task
/// alone may end with a small one.
pub(super) fn cut(state: &WriteState, sources: &[Source]) -> Vec<NewWork<WriteWork>> {
    let mut cutter = Cutter {
        state,
        tasks: Vec::new(),
        readings: Vec::new(),
        pieces: Vec::new(),
        rows: 0,
        bytes: 0,
    };
    for source in sources {
        for file in &source.files {
            match file.rows {
                Some(rows) => {
                    cutter.keep_apart(true);
                    let mut at = 0;
                    while at < rows {
                        let take = (state.max_rows_per_task - cutter.rows).min(rows - at);
                        let part = (take < rows).then_some((at, at + take));
                        let bytes =
                            (u128::from(file.size) * u128::from(take) / u128::from(rows)) as u64;
                        cutter.push(source, file, part, take, bytes);
                        at += take;
                        if cutter.rows == state.max_rows_per_task {
                            cutter.end();
                        }
                    }
                }
                None => {
                    cutter.keep_apart(false);
                    cutter.push(source, file, None, 0, file.size);
                    if cutter.bytes >= TASK_BYTES {
                        cutter.end();
                    }
                }
            }
        }
    }
    cutter.end();
    cutter.tasks
}

struct Cutter<'a> {
    state: &'a WriteState,
    tasks: Vec<NewWork<WriteWork>>,
    readings: Vec<Reading>,
    pieces: Vec<Piece>,
    rows: u64,
    bytes: u64,
}

impl Cutter<'_> {
    /// Files of known and of unknown row counts do not share a task.
    fn keep_apart(&mut self, known: bool) {
        if self.pieces.last().is_some_and(|p| p.file.rows.is_some() != known) {
            self.end();
        }
    }

    fn push(
        &mut self,
        source: &Source,
        file: &source::File,
        rows: Option<(u64, u64)>,
        count: u64,
        bytes: u64,
    ) {
        if self.readings.last() != Some(&source.reading) {
            self.readings.push(source.reading.clone());
        }
        let reading = self.readings.len() as u32 - 1;
        self.pieces.push(Piece { reading, file: file.clone(), rows });
        self.rows += count;
        self.bytes += bytes;
    }

    fn end(&mut self) {
        if self.pieces.is_empty() {
            return;
        }
        let rows = Rows::Pieces {
            readings: std::mem::take(&mut self.readings),
            pieces: std::mem::take(&mut self.pieces),
        };
        self.tasks.push(NewWork {
            key: None,
            work: WriteWork { shared: self.state.shared.clone(), rows },
            rows: std::mem::take(&mut self.rows),
            bytes: std::mem::take(&mut self.bytes),
        });
    }
}
