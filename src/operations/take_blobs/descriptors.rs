//! Blob descriptors: what a dataset stores of a blob in its row.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{UInt8Type, UInt32Type, UInt64Type};
use arrow_array::{Array, PrimitiveArray, RecordBatch, StructArray};
use lance::Dataset;
use lance::dataset::{ProjectionRequest, TakeBuilder};
use lance_core::datatypes::{BlobKind, parse_field_path};
use lance_core::utils::address::RowAddress;

use crate::error::{Error, ErrorCode, Result};

/// Which bytes a row's blob is. Rows of equal values have the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Blob {
    object: Object,
    position: u64,
    /// `None` = all of an object, however large it is.
    pub size: Option<u64>,
}

/// What holds the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Object {
    /// A fragment's data file, or a file beside it.
    OfFragment { fragment: u32, kind: u8, blob_id: u32 },
    /// A managed file, below the dataset or one of its bases.
    Managed { base: Option<u32>, path: Arc<str> },
    /// An object that is not the dataset's: below a base, or (base 0) by its URI.
    External { base: u32, path: Arc<str> },
}

/// The blobs of rows that are there; addresses in ascending order, each once.
pub(super) async fn descriptors(
    dataset: &Arc<Dataset>,
    field_id: u32,
    column: &str,
    addresses: &[u64],
) -> Result<Vec<Option<Blob>>> {
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    let projection = ProjectionRequest::from(dataset.schema().project(&[column])?);
    let projection = Arc::new(projection.into_projection_plan(dataset.clone())?);
    let batch =
        TakeBuilder::try_new_from_addresses(dataset.clone(), addresses.to_vec(), projection)?
            .execute()
            .await?;
    if batch.num_rows() != addresses.len() {
        return Err(Error::internal(format!(
            "{} descriptors were read for {} rows",
            batch.num_rows(),
            addresses.len()
        )));
    }
    let (leaf, absent) = leaf(&batch, column)?;
    if leaf.column_by_name("kind").is_none() {
        return legacy(leaf, &absent, addresses);
    }
    let kinds: &PrimitiveArray<UInt8Type> = child(leaf, "kind")?;
    let positions: &PrimitiveArray<UInt64Type> = child(leaf, "position")?;
    let sizes: &PrimitiveArray<UInt64Type> = child(leaf, "size")?;
    let ids: &PrimitiveArray<UInt32Type> = child(leaf, "blob_id")?;
    let uris = leaf.column_by_name("blob_uri").and_then(|c| c.as_string_opt::<i32>());
    let uris = uris.ok_or_else(|| no_descriptor(leaf))?;
    let base_of = |fragment: u32| {
        let fragment = dataset.get_fragment(fragment as usize);
        fragment.and_then(|f| f.data_file_for_field(field_id)?.base_id)
    };
    let mut bases = std::collections::HashMap::new();
    (0..leaf.len())
        .map(|row| {
            if absent[row] || kinds.is_null(row) {
                return Ok(None);
            }
            let fragment = RowAddress::from(addresses[row]).fragment_id();
            let (kind, blob_id) = (kinds.value(row), ids.value(row));
            let path = || Arc::from(uris.value(row));
            let mut size = Some(sizes.value(row));
            let object = match BlobKind::try_from(kind)? {
                BlobKind::Inline | BlobKind::Packed | BlobKind::Dedicated => {
                    Object::OfFragment { fragment, kind, blob_id }
                }
                BlobKind::Managed => {
                    let base = *bases.entry(fragment).or_insert_with(|| base_of(fragment));
                    Object::Managed { base, path: path() }
                }
                BlobKind::ManagedWithBase => Object::Managed { base: Some(blob_id), path: path() },
                BlobKind::External => {
                    size = size.filter(|size| *size > 0);
                    Object::External { base: blob_id, path: path() }
                }
            };
            Ok(Some(Blob { object, position: positions.value(row), size }))
        })
        .collect()
}

/// Of storage before 2.2: places in the data file.
fn legacy(leaf: &StructArray, absent: &[bool], addresses: &[u64]) -> Result<Vec<Option<Blob>>> {
    let positions: &PrimitiveArray<UInt64Type> = child(leaf, "position")?;
    let sizes: &PrimitiveArray<UInt64Type> = child(leaf, "size")?;
    let blobs = (0..leaf.len()).map(|row| {
        if absent[row] || positions.is_null(row) || sizes.is_null(row) {
            return None;
        }
        let (position, size) = (positions.value(row), sizes.value(row));
        // How a null is written there; an empty blob is at 0.
        if size == 0 && position != 0 {
            return None;
        }
        let fragment = RowAddress::from(addresses[row]).fragment_id();
        let object = Object::OfFragment { fragment, kind: 0, blob_id: 0 };
        Some(Blob { object, position, size: Some(size) })
    });
    Ok(blobs.collect())
}

/// The descriptors, and which rows have none: they or what they are inside of are null.
fn leaf<'a>(batch: &'a RecordBatch, column: &str) -> Result<(&'a StructArray, Vec<bool>)> {
    let path = parse_field_path(column)?;
    let mut absent = vec![false; batch.num_rows()];
    let mut current: Option<&StructArray> = None;
    for name in &path {
        let next = match current {
            None => batch.column_by_name(name),
            Some(parent) => parent.column_by_name(name),
        };
        let next = next.and_then(|c| c.as_struct_opt()).ok_or_else(|| {
            Error::internal(format!("column {column:?}: Lance read no descriptors"))
        })?;
        for (row, absent) in absent.iter_mut().enumerate() {
            *absent |= next.is_null(row);
        }
        current = Some(next);
    }
    let leaf = current.ok_or_else(|| Error::invalid("option \"column\" is empty"))?;
    Ok((leaf, absent))
}

fn child<'a, T: arrow_array::ArrowPrimitiveType>(
    leaf: &'a StructArray,
    name: &str,
) -> Result<&'a PrimitiveArray<T>> {
    let found = leaf.column_by_name(name).and_then(|c| c.as_primitive_opt::<T>());
    found.ok_or_else(|| no_descriptor(leaf))
}

fn no_descriptor(leaf: &StructArray) -> Error {
    Error::new(
        ErrorCode::NotSupported,
        format!("blob descriptors of an unknown layout: {}", leaf.data_type()),
    )
}
