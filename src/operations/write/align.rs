//! Rows in the shape of the dataset: order, types, nullability, missing columns, nested fields.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, GenericListArray, MapArray, OffsetSizeTrait, RecordBatch,
    RecordBatchOptions, StructArray, new_null_array,
};
use arrow_buffer::NullBuffer;
use arrow_cast::display::array_value_to_string;
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};

use crate::blob::fields::{is_binary, is_blob};
use crate::error::{Error, ErrorCode, Result};

fn mismatch(message: String) -> Error {
    Error::new(ErrorCode::SchemaMismatch, message)
}

/// The schema in which Lance stores rows of a schema: views, run-ends and list views become what they
/// stand for.
pub(super) fn storable(schema: &Schema) -> Schema {
    fn field(f: &FieldRef) -> FieldRef {
        let data_type = match f.data_type() {
            DataType::Utf8View => DataType::Utf8,
            DataType::BinaryView => DataType::Binary,
            DataType::ListView(item) => DataType::List(field(item)),
            DataType::LargeListView(item) => DataType::LargeList(field(item)),
            DataType::RunEndEncoded(_, values) => field(values).data_type().clone(),
            DataType::List(item) => DataType::List(field(item)),
            DataType::LargeList(item) => DataType::LargeList(field(item)),
            DataType::FixedSizeList(item, n) => DataType::FixedSizeList(field(item), *n),
            DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
            DataType::Map(entries, sorted) => DataType::Map(field(entries), *sorted),
            _ => return f.clone(),
        };
        Arc::new(f.as_ref().clone().with_data_type(data_type))
    }
    Schema::new_with_metadata(
        schema.fields().iter().map(field).collect::<Fields>(),
        schema.metadata().clone(),
    )
}

/// Brings batches of one schema into another.
#[derive(Debug, Clone)]
pub(super) struct Aligner {
    target: SchemaRef,
    /// For each target column its place in the input.
    columns: Vec<Option<usize>>,
    identical: bool,
}

impl Aligner {
    /// Check what can be checked before a row is seen.
    ///
    /// # Errors
    /// `SCHEMA_MISMATCH` naming the column that is unknown, missing or of a type that never casts.
    pub fn new(input: &Schema, target: &SchemaRef) -> Result<Self> {
        let columns = places("", input.fields(), target.fields())?;
        for (place, to) in columns.iter().zip(target.fields()) {
            if let Some(place) = place {
                check_types(to.name(), input.field(*place), to)?;
            }
        }
        let identical = input.fields() == target.fields();
        Ok(Self { target: target.clone(), columns, identical })
    }

    pub fn identical(&self) -> bool {
        self.identical
    }

    /// Align a batch whose first row is row `first` of its source.
    pub fn align(&self, batch: &RecordBatch, first: u64) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let row = |i: usize| first + i as u64;
        let columns = self
            .columns
            .iter()
            .zip(self.target.fields())
            .map(|(place, to)| match place {
                Some(place) => array(to.name(), batch.column(*place), to, None, &row),
                None => Ok(new_null_array(to.data_type(), rows)),
            })
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(self.target.clone(), columns, &options)?)
    }
}

/// For each target field its place among the input's, by name.
fn places(parent: &str, input: &Fields, target: &Fields) -> Result<Vec<Option<usize>>> {
    let path =
        |name: &str| if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") };
    for (i, field) in input.iter().enumerate() {
        if target.find(field.name()).is_none() {
            let names: Vec<&str> = target.iter().map(|f| f.name().as_str()).collect();
            return Err(mismatch(format!(
                "column {:?} is not in the dataset's schema, which has {}",
                path(field.name()),
                names.join(", ")
            )));
        }
        if input[..i].iter().any(|f| f.name() == field.name()) {
            return Err(mismatch(format!("column {:?} is there twice", path(field.name()))));
        }
    }
    target
        .iter()
        .map(|to| match input.find(to.name()) {
            Some((place, _)) => Ok(Some(place)),
            None if to.is_nullable() => Ok(None),
            None => Err(mismatch(format!(
                "column {:?} is missing and may not be null",
                path(to.name())
            ))),
        })
        .collect()
}

/// Could any value of one type become the other?
fn check_types(path: &str, from: &Field, to: &Field) -> Result<()> {
    let fits = match (from.data_type(), to.data_type()) {
        (a, b) if a == b => true,
        (DataType::Null, _) => true,
        (a, _) if is_blob(to) && is_binary(a) => true,
        (DataType::Struct(a), DataType::Struct(b)) => {
            for (place, to) in places(path, a, b)?.iter().zip(b) {
                if let Some(place) = place {
                    check_types(&format!("{path}.{}", to.name()), &a[*place], to)?;
                }
            }
            true
        }
        (a, b) => match (item(a), item(b)) {
            (Some(a), Some(b)) => return check_types(&format!("{path}[]"), a, b),
            _ => arrow_cast::can_cast_types(a, b),
        },
    };
    if fits {
        return Ok(());
    }
    Err(mismatch(format!(
        "column {path:?}: {} cannot be cast to {}",
        from.data_type(),
        to.data_type()
    )))
}

fn item(data_type: &DataType) -> Option<&FieldRef> {
    match data_type {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::Map(item, _) => Some(item),
        _ => None,
    }
}

type Row<'a> = &'a dyn Fn(usize) -> u64;

/// Align one array. `parent` says which of its places belong to a null above, and need no value.
fn array(
    path: &str,
    from: &ArrayRef,
    to: &Field,
    parent: Option<&NullBuffer>,
    row: Row<'_>,
) -> Result<ArrayRef> {
    let aligned = match (from.data_type(), to.data_type()) {
        (a, b) if a == b => from.clone(),
        (a, DataType::Struct(fields)) if is_blob(to) && is_binary(a) => {
            payloads(path, from, fields, row)?
        }
        (DataType::Struct(_), DataType::Struct(fields)) => {
            structs(path, from.as_struct(), fields, parent, row)?
        }
        (DataType::List(_), DataType::List(item)) => lists::<i32>(path, from.as_list(), item, row)?,
        (DataType::LargeList(_), DataType::LargeList(item)) => {
            lists::<i64>(path, from.as_list(), item, row)?
        }
        (DataType::FixedSizeList(_, n), DataType::FixedSizeList(item, m)) if n == m => {
            let from = from.as_fixed_size_list();
            let width = *n as usize;
            let values =
                array(&format!("{path}[]"), from.values(), item, None, &|i| row(i / width.max(1)))?;
            let nulls = from.nulls().cloned();
            Arc::new(FixedSizeListArray::try_new_with_length(
                item.clone(),
                *n,
                values,
                nulls,
                from.len(),
            )?)
        }
        (DataType::Map(_, _), DataType::Map(entries, sorted)) => {
            let from = from.as_map();
            let DataType::Struct(fields) = entries.data_type() else {
                return Err(mismatch(format!("column {path:?}: a map without entries")));
            };
            let offsets = from.offsets();
            let at =
                |i: usize| row(offsets.partition_point(|o| *o as usize <= i).saturating_sub(1));
            let inner = structs(&format!("{path}[]"), from.entries(), fields, None, &at)?;
            Arc::new(MapArray::try_new(
                entries.clone(),
                offsets.clone(),
                inner.as_struct().clone(),
                from.nulls().cloned(),
                *sorted,
            )?)
        }
        (a, b) => match relist(a, b) {
            // First the same kind of list, then its items.
            Some(listed) => {
                let listed = Field::new(to.name(), listed, true);
                return array(path, &convert(path, from, &listed, row)?, to, parent, row);
            }
            None => convert(path, from, to, row)?,
        },
    };
    refuse_nulls(path, &aligned, to, parent, row)?;
    Ok(aligned)
}

/// For lists of different kinds: the target's kind with the input's items.
fn relist(from: &DataType, to: &DataType) -> Option<DataType> {
    let inner = item(from)?.clone();
    let listed = match to {
        DataType::List(_) => DataType::List(inner),
        DataType::LargeList(_) => DataType::LargeList(inner),
        DataType::FixedSizeList(_, n) => DataType::FixedSizeList(inner, *n),
        _ => return None,
    };
    (listed != *to && listed != *from).then_some(listed)
}

fn structs(
    path: &str,
    from: &StructArray,
    fields: &Fields,
    parent: Option<&NullBuffer>,
    row: Row<'_>,
) -> Result<ArrayRef> {
    let nulls = NullBuffer::union(from.nulls(), parent);
    let children = places(path, from.fields(), fields)?
        .iter()
        .zip(fields)
        .map(|(place, to)| match place {
            Some(place) => array(
                &format!("{path}.{}", to.name()),
                from.column(*place),
                to,
                nulls.as_ref(),
                row,
            ),
            None => Ok(new_null_array(to.data_type(), from.len())),
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(StructArray::try_new_with_length(
        fields.clone(),
        children,
        from.nulls().cloned(),
        from.len(),
    )?))
}

/// Plain bytes as values of a blob column.
fn payloads(path: &str, from: &ArrayRef, fields: &Fields, row: Row<'_>) -> Result<ArrayRef> {
    let bytes = Field::new("data", DataType::LargeBinary, true);
    let bytes = if from.data_type() == bytes.data_type() {
        from.clone()
    } else {
        convert(path, from, &bytes, row)?
    };
    let children = fields.iter().map(|field| match field.name().as_str() {
        "data" => bytes.clone(),
        _ => new_null_array(field.data_type(), from.len()),
    });
    let nulls = from.nulls().cloned();
    let len = from.len();
    Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), children.collect(), nulls, len)?))
}

fn lists<O: OffsetSizeTrait>(
    path: &str,
    from: &GenericListArray<O>,
    item: &FieldRef,
    row: Row<'_>,
) -> Result<ArrayRef> {
    let offsets = from.offsets();
    let at = |i: usize| row(offsets.partition_point(|o| o.as_usize() <= i).saturating_sub(1));
    let values = array(&format!("{path}[]"), from.values(), item, None, &at)?;
    Ok(Arc::new(GenericListArray::<O>::try_new(
        item.clone(),
        offsets.clone(),
        values,
        from.nulls().cloned(),
    )?))
}

/// Cast; where a value does not fit, say which.
fn convert(path: &str, from: &ArrayRef, to: &Field, row: Row<'_>) -> Result<ArrayRef> {
    let strict = CastOptions { safe: false, ..Default::default() };
    let error = match cast_with_options(from, to.data_type(), &strict) {
        Ok(array) => match lost(from, &array) {
            // Some casts (to a fixed-size list, say) answer with null instead of an error.
            None => return Ok(array),
            Some(at) => return Err(misfit(path, from, to, at, row)),
        },
        Err(error) => error,
    };
    let lenient = CastOptions { safe: true, ..Default::default() };
    if let Ok(array) = cast_with_options(from, to.data_type(), &lenient)
        && let Some(at) = lost(from, &array)
    {
        return Err(misfit(path, from, to, at, row));
    }
    // The lenient cast fails as a whole for some types: try value by value.
    for at in 0..from.len() {
        if cast_with_options(&from.slice(at, 1), to.data_type(), &strict).is_err() {
            return Err(misfit(path, from, to, at, row));
        }
    }
    Err(mismatch(format!("column {path:?}: {error}")))
}

fn lost(from: &ArrayRef, to: &ArrayRef) -> Option<usize> {
    if to.null_count() == from.logical_null_count() {
        return None;
    }
    let before = from.logical_nulls();
    (0..from.len()).find(|i| to.is_null(*i) && before.as_ref().is_none_or(|n| n.is_valid(*i)))
}

fn misfit(path: &str, from: &ArrayRef, to: &Field, at: usize, row: Row<'_>) -> Error {
    let mut value = array_value_to_string(from, at).unwrap_or_else(|_| "?".into());
    if value.chars().count() > 80 {
        value = value.chars().take(80).collect::<String>() + "..";
    }
    mismatch(format!(
        "column {path:?}, row {}: value {value:?} ({}) does not fit {}",
        row(at),
        from.data_type(),
        to.data_type()
    ))
}

fn refuse_nulls(
    path: &str,
    array: &ArrayRef,
    to: &Field,
    parent: Option<&NullBuffer>,
    row: Row<'_>,
) -> Result<()> {
    if to.is_nullable() || array.null_count() == 0 {
        return Ok(());
    }
    let wrong = (0..array.len())
        .find(|i| array.is_null(*i) && parent.is_none_or(|nulls| nulls.is_valid(*i)));
    match wrong {
        None => Ok(()),
        Some(at) => Err(mismatch(format!(
            "column {path:?}, row {}: null, but the column may not be null",
            row(at)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{Int32Array, Int64Array, ListArray, StringArray, types::Int32Type};

    use super::*;

    fn aligned(column: ArrayRef, to: Field) -> Result<ArrayRef> {
        let input = Schema::new(vec![Field::new("a", column.data_type().clone(), true)]);
        let batch = RecordBatch::try_new(Arc::new(input.clone()), vec![column]).unwrap();
        let target = Arc::new(Schema::new(vec![to]));
        let batch = Aligner::new(&input, &target)?.align(&batch, 100)?;
        Ok(batch.column(0).clone())
    }

    #[test]
    fn a_value_that_does_not_fit_names_column_row_and_value() {
        let column: ArrayRef = Arc::new(StringArray::from(vec![Some("1"), None, Some("x7")]));
        let error = aligned(column, Field::new("a", DataType::Int32, true)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::SchemaMismatch);
        for part in ["\"a\"", "row 102", "x7", "Int32"] {
            assert!(error.message().contains(part), "{error}");
        }
    }

    #[test]
    fn rows_are_named_through_lists() {
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
            Some(vec![Some(1)]),
            None,
            Some(vec![Some(2), Some(1000)]),
        ]);
        let to = Field::new("a", DataType::new_list(DataType::Int8, true), true);
        let error = aligned(Arc::new(list), to).unwrap_err();
        assert!(error.message().contains("\"a[]\", row 102: value \"1000\""), "{error}");
    }

    #[test]
    fn nulls_are_refused_only_where_no_parent_is_null() {
        let column: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), None]));
        let error = aligned(column, Field::new("a", DataType::Int64, false)).unwrap_err();
        assert!(error.message().contains("row 101: null"), "{error}");

        let child: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), None]));
        let fields: Fields = vec![Field::new("x", DataType::Int32, true)].into();
        let nulls = NullBuffer::from(vec![true, false]);
        let outer: ArrayRef = Arc::new(StructArray::new(fields, vec![child], Some(nulls)));
        let to: Fields =
            vec![Field::new("y", DataType::Utf8, true), Field::new("x", DataType::Int64, false)]
                .into();
        let out = aligned(outer, Field::new("a", DataType::Struct(to), true)).unwrap();
        let x: &Int64Array = out.as_struct().column(1).as_primitive();
        assert_eq!((x.value(0), out.is_null(1)), (1, true));
    }

    #[test]
    fn unknown_and_missing_columns_are_named() {
        let input = Schema::new(vec![Field::new("b", DataType::Int32, true)]);
        let target = Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, false)]));
        assert!(Aligner::new(&input, &target).unwrap_err().message().contains("\"b\""));
        let error = Aligner::new(&Schema::empty(), &target).unwrap_err();
        assert!(error.message().contains("\"a\" is missing"), "{error}");
    }
}
