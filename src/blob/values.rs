//! Taking the values of blob columns out of a batch, wherever they lie in it, and putting others in.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, GenericListArray, OffsetSizeTrait, RecordBatch, RecordBatchOptions,
    StructArray,
};
use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use lance_arrow::list::ListArrayExt;
use lance_arrow::r#struct::StructArrayExt;

use super::fields::{any, is_blob};
use crate::error::{Error, Result};

/// The values of one blob column of a batch.
pub(crate) struct Values {
    pub array: StructArray,
    /// For columns within lists the row of each value.
    rows: Option<Vec<u32>>,
}

impl Values {
    /// The row, within its batch, of a value.
    pub fn row(&self, value: usize) -> usize {
        match &self.rows {
            Some(rows) => rows.get(value).map_or(0, |row| *row as usize),
            None => value,
        }
    }
}

/// The columns of a batch with nulls and offsets settled, so that values can be exchanged; and the
/// values of its blobs, in the order in which a walk over `schema` meets them. `schema` says which
/// columns are blobs; the batch's own columns must be in its order.
pub(crate) fn collect(
    schema: &Schema,
    batch: &RecordBatch,
) -> Result<(Vec<ArrayRef>, Vec<Values>)> {
    let mut values = Vec::new();
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, array) in schema.fields().iter().zip(batch.columns()) {
        let array = settled(field, array)?;
        take(field, &array, None, &mut values)?;
        columns.push(array);
    }
    Ok((columns, values))
}

/// The batch with other arrays in place of its blobs, in the same order. `schema` is the new one.
pub(crate) fn replace(
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
    blobs: Vec<ArrayRef>,
) -> Result<RecordBatch> {
    let mut blobs = blobs.into_iter();
    let columns = schema
        .fields()
        .iter()
        .zip(columns)
        .map(|(field, array)| put(field, array, &mut blobs))
        .collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

fn has(field: &Field) -> bool {
    any(field, &is_blob)
}

/// Nulls of structs pushed down to their children, lists without what no row refers to.
fn settled(field: &Field, array: &ArrayRef) -> Result<ArrayRef> {
    if is_blob(field) {
        return Ok(Arc::new(structs(field, array)?.normalize_slicing()?));
    }
    if !has(field) {
        return Ok(array.clone());
    }
    match field.data_type() {
        DataType::Struct(fields) => {
            let array = structs(field, array)?.normalize_slicing()?.pushdown_nulls()?;
            let children = fields
                .iter()
                .zip(array.columns())
                .map(|(f, child)| settled(f, child))
                .collect::<Result<Vec<_>>>()?;
            rebuilt(&array, children)
        }
        DataType::List(item) => settled_list::<i32>(item, array),
        DataType::LargeList(item) => settled_list::<i64>(item, array),
        _ => Ok(array.clone()),
    }
}

fn settled_list<O: OffsetSizeTrait>(item: &Field, array: &ArrayRef) -> Result<ArrayRef> {
    let list =
        array.as_list_opt::<O>().ok_or_else(|| Error::internal("a list column without lists"))?;
    let list = if list.null_count() > 0 { list.filter_garbage_nulls() } else { list.clone() };
    let values = settled(item, &list.trimmed_values())?;
    relisted::<O>(list.trimmed_offsets(), values, &list)
}

fn relisted<O: OffsetSizeTrait>(
    offsets: arrow_buffer::OffsetBuffer<O>,
    values: ArrayRef,
    like: &GenericListArray<O>,
) -> Result<ArrayRef> {
    let item = match like.data_type() {
        DataType::List(item) | DataType::LargeList(item) => item,
        _ => return Err(Error::internal("a list column without lists")),
    };
    let item = item.as_ref().clone().with_data_type(values.data_type().clone());
    let nulls = like.nulls().cloned();
    Ok(Arc::new(GenericListArray::<O>::try_new(Arc::new(item), offsets, values, nulls)?))
}

fn rebuilt(like: &StructArray, children: Vec<ArrayRef>) -> Result<ArrayRef> {
    let fields: Fields = like
        .fields()
        .iter()
        .zip(&children)
        .map(|(f, child)| {
            Arc::new(f.as_ref().clone().with_data_type(child.data_type().clone())) as FieldRef
        })
        .collect();
    let nulls = like.nulls().cloned();
    Ok(Arc::new(StructArray::try_new_with_length(fields, children, nulls, like.len())?))
}

fn structs<'a>(field: &Field, array: &'a ArrayRef) -> Result<&'a StructArray> {
    array
        .as_struct_opt()
        .ok_or_else(|| Error::internal(format!("column {:?} holds no structs", field.name())))
}

fn take(
    field: &Field,
    array: &ArrayRef,
    rows: Option<&[u32]>,
    into: &mut Vec<Values>,
) -> Result<()> {
    if is_blob(field) {
        let array = structs(field, array)?.clone();
        into.push(Values { array, rows: rows.map(<[u32]>::to_vec) });
        return Ok(());
    }
    if !has(field) {
        return Ok(());
    }
    match field.data_type() {
        DataType::Struct(fields) => {
            let array = structs(field, array)?;
            fields.iter().zip(array.columns()).try_for_each(|(f, child)| take(f, child, rows, into))
        }
        DataType::List(item) => take_list::<i32>(item, array, rows, into),
        DataType::LargeList(item) => take_list::<i64>(item, array, rows, into),
        _ => Ok(()),
    }
}

fn take_list<O: OffsetSizeTrait>(
    item: &Field,
    array: &ArrayRef,
    rows: Option<&[u32]>,
    into: &mut Vec<Values>,
) -> Result<()> {
    let list = array.as_list::<O>();
    let mut of = Vec::with_capacity(list.values().len());
    for (at, length) in list.offsets().lengths().enumerate() {
        let row = rows.and_then(|rows| rows.get(at).copied()).unwrap_or(at as u32);
        of.resize(of.len() + length, row);
    }
    take(item, list.values(), Some(&of), into)
}

fn put(
    field: &Field,
    array: ArrayRef,
    blobs: &mut impl Iterator<Item = ArrayRef>,
) -> Result<ArrayRef> {
    if is_blob(field) {
        return blobs.next().ok_or_else(|| Error::internal("a blob column without its values"));
    }
    if !has(field) {
        return Ok(array);
    }
    match field.data_type() {
        DataType::Struct(fields) => {
            let like = structs(field, &array)?;
            let children = fields
                .iter()
                .zip(like.columns())
                .map(|(f, child)| put(f, child.clone(), blobs))
                .collect::<Result<Vec<_>>>()?;
            let nulls = like.nulls().cloned();
            Ok(Arc::new(StructArray::try_new_with_length(
                fields.clone(),
                children,
                nulls,
                like.len(),
            )?))
        }
        DataType::List(item) => put_list::<i32>(item, &array, blobs),
        DataType::LargeList(item) => put_list::<i64>(item, &array, blobs),
        _ => Ok(array),
    }
}

fn put_list<O: OffsetSizeTrait>(
    item: &FieldRef,
    array: &ArrayRef,
    blobs: &mut impl Iterator<Item = ArrayRef>,
) -> Result<ArrayRef> {
    let list = array.as_list::<O>();
    let values = put(item, list.values().clone(), blobs)?;
    let (offsets, nulls) = (list.offsets().clone(), list.nulls().cloned());
    Ok(Arc::new(GenericListArray::<O>::try_new(item.clone(), offsets, values, nulls)?))
}

#[cfg(test)]
mod tests {
    use arrow_array::builder::{LargeBinaryBuilder, ListBuilder};
    use arrow_array::{Int32Array, LargeBinaryArray};

    use super::*;
    use crate::blob::fields::{input_schema, leaves, stored_schema};

    #[test]
    fn values_within_lists_know_their_rows() {
        let item = Field::new("item", DataType::LargeBinary, true);
        let schema = Schema::new(vec![
            Field::new("n", DataType::Int32, true),
            Field::new("pages", DataType::List(Arc::new(item)), true),
        ]);
        let wanted = [("pages".to_owned(), Default::default())].into();
        let stored = stored_schema(&schema, &wanted, false).unwrap();
        assert_eq!(leaves(&stored, None).unwrap().len(), 1);
        let mut pages = ListBuilder::new(LargeBinaryBuilder::new());
        for row in [Some(vec!["a", "b"]), None, Some(vec![]), Some(vec!["c"])] {
            let valid = row.is_some();
            row.into_iter().flatten().for_each(|v| pages.values().append_value(v));
            pages.append(valid);
        }
        let input = input_schema(&stored);
        let DataType::List(item) = input.field(1).data_type() else { unreachable!() };
        let DataType::Struct(fields) = item.data_type() else { unreachable!() };
        let pages = pages.finish();
        let data: ArrayRef = Arc::new(pages.values().as_binary::<i64>().clone());
        let mut children = vec![data];
        children.extend(fields[1..].iter().map(|f| arrow_array::new_null_array(f.data_type(), 3)));
        let values = StructArray::new(fields.clone(), children, None);
        let list = GenericListArray::<i32>::new(
            item.clone(),
            pages.offsets().clone(),
            Arc::new(values),
            pages.nulls().cloned(),
        );
        let n: ArrayRef = Arc::new(Int32Array::from(vec![1, 2, 3, 4]));
        let batch = RecordBatch::try_new(Arc::new(input), vec![n, Arc::new(list)]).unwrap();
        // A slice, as the sink hands them on.
        let batch = batch.slice(1, 3);
        let (columns, values) = collect(&stored, &batch).unwrap();
        let data: &LargeBinaryArray = values[0].array.column(0).as_binary();
        assert_eq!((data.len(), data.value(0), values[0].row(0)), (1, b"c".as_slice(), 2));
        let blobs: Vec<ArrayRef> = vec![Arc::new(values[0].array.clone())];
        let schema = batch.schema();
        assert_eq!(replace(&schema, columns, 3, blobs).unwrap(), batch);
    }
}
