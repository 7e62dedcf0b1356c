//! Which columns are blobs, and the Arrow types they have on their way.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow_schema::{DataType, Field, FieldRef, Fields, Schema};
use lance_arrow::{
    ARROW_EXT_NAME_KEY, BLOB_DEDICATED_SIZE_THRESHOLD_META_KEY,
    BLOB_INLINE_SIZE_THRESHOLD_META_KEY, BLOB_META_KEY, BLOB_PACK_FILE_SIZE_THRESHOLD_META_KEY,
    BLOB_V2_EXT_NAME, FieldExt,
};
use lance_core::datatypes::{BLOB_V2_LOGICAL_MINIMAL_FIELDS, BLOB_V2_PREPARED_TYPE};
use lance_file::version::ConcreteFileVersion;

use crate::error::{Error, ErrorCode, Result};

/// Payloads of at most this many bytes lie in the data file itself (Lance's default).
const INLINE: u64 = 64 << 10;
/// Larger ones have a file of their own (Lance's default); those between share pack files.
const DEDICATED: u64 = 4 << 20;
/// Bytes of a pack file at most (Lance's default).
const PACK: u64 = 1 << 30;

/// A value as it comes in: exactly one of `data` and `uri` where it is not null; `position` and `size`
/// choose a part of the object at `uri`; rows of one positive `ref_id` share their payload.
static INPUT: LazyLock<Fields> = LazyLock::new(|| {
    let field = |name: &str, data_type| Field::new(name, data_type, true);
    vec![
        field("data", DataType::LargeBinary),
        field("uri", DataType::Utf8),
        field("position", DataType::UInt64),
        field("size", DataType::UInt64),
        field("ref_id", DataType::UInt64),
    ]
    .into()
});

/// Whether files of a version hold blobs.
pub(crate) fn supports(version: ConcreteFileVersion) -> bool {
    matches!(version, ConcreteFileVersion::V2_2 | ConcreteFileVersion::V2_3)
}

pub(crate) fn is_blob(field: &Field) -> bool {
    field.is_blob_v2()
}

pub(crate) fn is_legacy(field: &Field) -> bool {
    field.is_blob() && !field.is_blob_v2()
}

pub(crate) fn is_binary(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

/// Whether the field is a blob, or has one inside.
pub(crate) fn any(field: &Field, is: &dyn Fn(&Field) -> bool) -> bool {
    is(field)
        || match field.data_type() {
            DataType::Struct(fields) => fields.iter().any(|f| any(f, is)),
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::FixedSizeList(item, _)
            | DataType::Map(item, _)
            | DataType::ListView(item)
            | DataType::LargeListView(item) => any(item, is),
            _ => false,
        }
}

pub(crate) fn has_blobs(schema: &Schema) -> bool {
    schema.fields().iter().any(|f| any(f, &is_blob))
}

/// The path of the first blob column, of any kind.
pub(crate) fn first_blob(schema: &Schema) -> Option<String> {
    schema.fields().iter().find(|f| any(f, &is_blob)).map(|f| f.name().clone())
}

/// The same fields, with blobs replaced.
fn map(field: &FieldRef, blob: &dyn Fn(&Field) -> Field) -> FieldRef {
    if is_blob(field) {
        return Arc::new(blob(field));
    }
    let data_type = match field.data_type() {
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|f| map(f, blob)).collect()),
        DataType::List(item) => DataType::List(map(item, blob)),
        DataType::LargeList(item) => DataType::LargeList(map(item, blob)),
        _ => return field.clone(),
    };
    Arc::new(field.as_ref().clone().with_data_type(data_type))
}

fn map_schema(schema: &Schema, blob: &dyn Fn(&Field) -> Field) -> Schema {
    Schema::new_with_metadata(
        schema.fields().iter().map(|f| map(f, blob)).collect::<Fields>(),
        schema.metadata().clone(),
    )
}

/// The schema that rows are brought into before their payloads are taken out.
pub(crate) fn input_schema(schema: &Schema) -> Schema {
    map_schema(schema, &|f| f.clone().with_data_type(DataType::Struct(INPUT.clone())))
}

/// The schema that Lance's writer is given: payloads replaced by where they lie.
pub(crate) fn prepared_schema(schema: &Schema) -> Schema {
    map_schema(schema, &|f| f.clone().with_data_type(BLOB_V2_PREPARED_TYPE.clone()))
}

/// What a user asks of a blob column.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub inline_size_threshold: Option<u64>,
    pub dedicated_size_threshold: Option<u64>,
    pub pack_file_size_threshold: Option<u64>,
}

impl Wanted {
    fn metadata(&self, metadata: &mut HashMap<String, String>) {
        for (key, value) in [
            (BLOB_INLINE_SIZE_THRESHOLD_META_KEY, self.inline_size_threshold),
            (BLOB_DEDICATED_SIZE_THRESHOLD_META_KEY, self.dedicated_size_threshold),
            (BLOB_PACK_FILE_SIZE_THRESHOLD_META_KEY, self.pack_file_size_threshold),
        ] {
            if let Some(value) = value {
                metadata.insert(key.to_owned(), value.to_string());
            }
        }
    }
}

fn wrong(path: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::SchemaMismatch, format!("blob column {path:?}: {why}"))
}

/// The schema with blobs in the form in which Lance keeps them: the columns of `wanted` (names, or paths
/// such as `docs.image`; lists count as what is in them), those that carry the extension, and, with
/// `promote`, legacy ones.
///
/// # Errors
/// `SCHEMA_MISMATCH` names a column that is not there, holds no bytes, or lies where Lance takes no blob.
pub(crate) fn stored_schema(
    schema: &Schema,
    wanted: &HashMap<String, Wanted>,
    promote: bool,
) -> Result<Schema> {
    let mut found = Vec::new();
    let fields = schema
        .fields()
        .iter()
        .map(|f| stored(f, f.name(), wanted, promote, &mut found))
        .collect::<Result<Fields>>()?;
    if let Some(missing) = wanted.keys().find(|name| !found.contains(name)) {
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        return Err(wrong(missing, format!("there is no such column among {}", names.join(", "))));
    }
    Ok(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn stored<'a>(
    field: &FieldRef,
    path: &str,
    wanted: &'a HashMap<String, Wanted>,
    promote: bool,
    found: &mut Vec<&'a String>,
) -> Result<FieldRef> {
    let asked = wanted.get_key_value(path);
    if let Some((name, _)) = asked
        && !found.contains(&name)
    {
        found.push(name);
    }
    let inner = |f: &FieldRef, path: &str, found: &mut Vec<&'a String>| {
        stored(f, path, wanted, promote, found)
    };
    let blob = is_blob(field)
        || (promote && is_legacy(field))
        || (asked.is_some() && (is_binary(field.data_type()) || is_input(field.data_type())));
    if blob {
        check_shape(field, path)?;
        let mut metadata = field.metadata().clone();
        metadata.remove(BLOB_META_KEY);
        metadata.insert(ARROW_EXT_NAME_KEY.to_owned(), BLOB_V2_EXT_NAME.to_owned());
        if let Some((_, options)) = asked {
            options.metadata(&mut metadata);
        }
        let data_type = DataType::Struct(BLOB_V2_LOGICAL_MINIMAL_FIELDS.clone());
        let field = Field::new(field.name(), data_type, field.is_nullable());
        return Ok(Arc::new(field.with_metadata(metadata)));
    }
    let data_type = match field.data_type() {
        DataType::Struct(fields) if asked.is_none() => DataType::Struct(
            fields
                .iter()
                .map(|f| inner(f, &format!("{path}.{}", f.name()), found))
                .collect::<Result<_>>()?,
        ),
        DataType::List(item) => DataType::List(inner(item, path, found)?),
        DataType::LargeList(item) => DataType::LargeList(inner(item, path, found)?),
        DataType::FixedSizeList(item, _) | DataType::Map(item, _)
            if any(item, &is_blob) || asked.is_some() =>
        {
            return Err(wrong(path, "Lance takes no blobs within fixed-size lists and maps"));
        }
        other if asked.is_some() => {
            return Err(wrong(path, format!("it must hold bytes, and is {other}")));
        }
        _ => return Ok(field.clone()),
    };
    Ok(Arc::new(field.as_ref().clone().with_data_type(data_type)))
}

/// Whether a struct is of the input's children, bytes or a URI among them.
fn is_input(data_type: &DataType) -> bool {
    let DataType::Struct(children) = data_type else { return false };
    children.iter().all(|c| INPUT.find(c.name()).is_some())
        && (children.find("data").is_some() || children.find("uri").is_some())
}

/// Bytes, or a struct of the input's children.
fn check_shape(field: &Field, path: &str) -> Result<()> {
    match field.data_type() {
        data_type if is_binary(data_type) => Ok(()),
        DataType::Struct(children) => {
            let unknown = children.iter().find(|c| INPUT.find(c.name()).is_none());
            match unknown {
                None => Ok(()),
                Some(child) if child.name() == "kind" => Err(wrong(
                    path,
                    "a scan's descriptors cannot be written; read the source's bytes (blob_handling \
                     \"all_binary\")",
                )),
                Some(child) => Err(wrong(
                    path,
                    format!(
                        "its values have data, uri, position, size and ref_id, not {:?}",
                        child.name()
                    ),
                )),
            }
        }
        other => Err(wrong(path, format!("it must hold bytes, and is {other}"))),
    }
}

/// One blob column, or one within structs and lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub path: String,
    pub inline: u64,
    pub dedicated: u64,
    pub pack: u64,
}

/// The blobs of a schema, in the order in which a walk over its fields meets them.
///
/// # Errors
/// `SCHEMA_MISMATCH` names a column whose thresholds are no numbers.
pub(crate) fn leaves(schema: &Schema, pack: Option<u64>) -> Result<Vec<Leaf>> {
    let mut leaves = Vec::new();
    for field in schema.fields() {
        walk(field, field.name(), pack, &mut leaves)?;
    }
    Ok(leaves)
}

fn walk(field: &Field, path: &str, pack: Option<u64>, into: &mut Vec<Leaf>) -> Result<()> {
    if is_blob(field) {
        let threshold = |key: &str, default: u64, least: u64| match field.metadata().get(key) {
            None => Ok(default),
            Some(text) => text.parse().ok().filter(|n| *n >= least).ok_or_else(|| {
                wrong(path, format!("{key} is {text:?}, it must be a number from {least} on"))
            }),
        };
        into.push(Leaf {
            path: path.to_owned(),
            inline: threshold(BLOB_INLINE_SIZE_THRESHOLD_META_KEY, INLINE, 0)?,
            dedicated: threshold(BLOB_DEDICATED_SIZE_THRESHOLD_META_KEY, DEDICATED, 1)?,
            pack: match pack {
                Some(pack) => pack,
                None => threshold(BLOB_PACK_FILE_SIZE_THRESHOLD_META_KEY, PACK, 1)?,
            },
        });
        return Ok(());
    }
    match field.data_type() {
        DataType::Struct(fields) => {
            fields.iter().try_for_each(|f| walk(f, &format!("{path}.{}", f.name()), pack, into))
        }
        DataType::List(item) | DataType::LargeList(item) => walk(item, path, pack, into),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(names: &[&str]) -> HashMap<String, Wanted> {
        names.iter().map(|n| ((*n).to_owned(), Wanted::default())).collect()
    }

    fn schema() -> Schema {
        let bytes = |name: &str| Field::new(name, DataType::Binary, true);
        let list = DataType::List(Arc::new(bytes("item")));
        let inner: Fields = vec![bytes("image"), Field::new("n", DataType::Int32, true)].into();
        Schema::new(vec![
            bytes("a"),
            Field::new("docs", DataType::Struct(inner), true),
            Field::new("pages", list, true),
            Field::new("x", DataType::Int64, true),
        ])
    }

    #[test]
    fn named_columns_become_blobs_wherever_they_lie() {
        let stored =
            stored_schema(&schema(), &wanted(&["a", "docs.image", "pages"]), false).unwrap();
        let paths: Vec<_> = leaves(&stored, None).unwrap().into_iter().map(|l| l.path).collect();
        assert_eq!(paths, ["a", "docs.image", "pages"]);
        assert_eq!(stored_schema(&stored, &wanted(&["a"]), false).unwrap(), stored);
    }

    #[test]
    fn wrong_columns_are_named() {
        for (name, why) in [("y", "no such column"), ("x", "Int64"), ("docs.n", "Int32")] {
            let error = stored_schema(&schema(), &wanted(&[name]), false).unwrap_err();
            assert!(error.message().contains(&format!("{name:?}")), "{error}");
            assert!(error.message().contains(why), "{error}");
        }
    }
}
