//! The library's own streams as plain tables.

use std::ffi::CStr;

use crate::abi::{ArrowArray, ArrowSchema, ArrowStream};
use crate::columns::{Column, Table, Values};

/// Read a stream of the library to its end, as one table.
pub fn import(mut stream: ArrowStream) -> Result<Table, String> {
    let (Some(get_schema), Some(get_next)) = (stream.get_schema, stream.get_next) else {
        return Err("a released stream".into());
    };
    let mut table: Option<Table> = None;
    // SAFETY: a live stream of the library, read and released as the interface says.
    unsafe {
        let mut schema = ArrowSchema::empty();
        if get_schema(&mut stream, &mut schema) != 0 {
            return Err("get_schema failed".into());
        }
        loop {
            let mut array = ArrowArray::empty();
            if get_next(&mut stream, &mut array) != 0 {
                return Err("get_next failed".into());
            }
            let Some(release) = array.release else { break };
            let column = read(&schema, &array, 0, array.length as usize)?;
            let rows = array.length as usize;
            release(&mut array);
            let Values::Struct(columns) = column.values else { return Err("no struct".into()) };
            match &mut table {
                None => {
                    table = Some(Table { columns, rows, ..Default::default() });
                }
                Some(_) => return Err("more than one batch".into()),
            }
        }
        if let Some(release) = schema.release {
            release(&mut schema);
        }
    }
    table.ok_or_else(|| "no batch".into())
}

/// SAFETY: a live schema and array of the library.
unsafe fn read(
    schema: &ArrowSchema,
    array: &ArrowArray,
    from: usize,
    len: usize,
) -> Result<Column, String> {
    unsafe {
        let format = CStr::from_ptr(schema.format).to_str().map_err(|e| e.to_string())?;
        let name = if schema.name.is_null() { c"" } else { CStr::from_ptr(schema.name) };
        let name = name.to_str().map_err(|e| e.to_string())?;
        let from = from + array.offset as usize;
        let buffer = |i: usize| (*array.buffers.add(i)).cast::<u8>();
        let slice = |i: usize, from: usize, len: usize| -> &[u8] {
            if len == 0 { &[] } else { std::slice::from_raw_parts(buffer(i).add(from), len) }
        };
        let ends = || -> Vec<usize> {
            let bytes = slice(1, from * 4, (len + 1) * 4).chunks_exact(4);
            bytes.map(|b| i32::from_le_bytes(b.try_into().unwrap_or_default()) as usize).collect()
        };
        let child = |i: usize, from: usize, len: usize| {
            read(&**schema.children.add(i), &**array.children.add(i), from, len)
        };
        let values = match format {
            "u" | "z" => {
                let ends = if len == 0 { vec![0] } else { ends() };
                Values::Text {
                    format: if format == "u" { "u" } else { "z" },
                    dictionary: false,
                    items: ends.windows(2).map(|w| slice(2, w[0], w[1] - w[0]).to_vec()).collect(),
                }
            }
            "+l" => {
                let ends = if len == 0 { vec![0] } else { ends() };
                let lengths = ends.windows(2).map(|w| w[1] - w[0]).collect();
                let child = child(0, ends[0], ends[len] - ends[0])?;
                Values::List { large: false, lengths, child: Box::new(child) }
            }
            "+s" => {
                let children = 0..schema.n_children as usize;
                Values::Struct(children.map(|i| child(i, from, len)).collect::<Result<_, _>>()?)
            }
            other => {
                let width = match other.as_bytes() {
                    b"i" | b"I" => 4,
                    b"l" | b"L" | b"g" | [b't', ..] => 8,
                    _ => return Err(format!("a column of format {other}")),
                };
                let data = slice(1, from * width, len * width).to_vec();
                Values::Fixed { format: other.to_owned(), width, data }
            }
        };
        let valid = (array.null_count != 0 && !buffer(0).is_null()).then(|| {
            (from..from + len).map(|i| *buffer(0).add(i / 8) >> (i % 8) & 1 == 1).collect()
        });
        let nullable = schema.flags & 2 != 0;
        Ok(Column { nullable, valid, ..Column::new(name, values) })
    }
}
