//! What the segments of a vector index share: given by the user or trained by the job's first task, and
//! handed to the others through a file, so that no descriptor carries it.

use std::io::Cursor;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, ListArray, RecordBatch, StringArray, make_array,
};
use arrow_buffer::{Buffer, OffsetBuffer};
use arrow_data::ArrayData;
use arrow_schema::{DataType, Field, Schema};
use object_store::ObjectStoreExt;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use uuid::Uuid;

use crate::codec::{Blob, inexact};
use crate::dataset::join;
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::result::{WrittenFile, check_ipc};

/// A matrix of numbers that the user gives: nested lists, or `dtype` (`float16`, `float32`, `float64`,
/// `uint8`), `shape` and `data`, the little-endian values in Base64. Whether it is one is found out where
/// it is used.
#[derive(Debug, Clone, PartialEq)]
pub enum Tensor {
    Lists(Vec<Value>),
    Bytes(Bytes),
}

/// The second form of a [`Tensor`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bytes {
    dtype: String,
    shape: Vec<u64>,
    data: Blob,
}

/// A [`Tensor`] in binary: lists as JSON text.
#[derive(Serialize, Deserialize)]
enum Wire {
    Lists(String),
    Bytes(Bytes),
}

impl Serialize for Tensor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error as _;
        match (self, serializer.is_human_readable()) {
            (Self::Lists(lists), true) => lists.serialize(serializer),
            (Self::Bytes(bytes), true) => bytes.serialize(serializer),
            (Self::Lists(lists), false) => {
                Wire::Lists(serde_json::to_string(lists).map_err(S::Error::custom)?)
                    .serialize(serializer)
            }
            (Self::Bytes(bytes), false) => Wire::Bytes(bytes.clone()).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Tensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        if deserializer.is_human_readable() {
            return match Value::deserialize(deserializer)? {
                Value::Array(lists) => match lists.iter().find_map(inexact) {
                    None => Ok(Self::Lists(lists)),
                    Some(number) => Err(D::Error::custom(format!(
                        "the number {number} has more digits than can be kept; say the matrix by its \
                         dtype, shape and data"
                    ))),
                },
                value => serde_json::from_value(value).map(Self::Bytes).map_err(D::Error::custom),
            };
        }
        match Wire::deserialize(deserializer)? {
            Wire::Lists(text) => {
                serde_json::from_str(&text).map(Self::Lists).map_err(D::Error::custom)
            }
            Wire::Bytes(bytes) => Ok(Self::Bytes(bytes)),
        }
    }
}

impl JsonSchema for Tensor {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Tensor".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A matrix of numbers: nested lists, or its type, shape and little-endian bytes.",
            "anyOf": [
                { "type": "array" },
                {
                    "type": "object",
                    "properties": {
                        "dtype": { "enum": ["float16", "float32", "float64", "uint8"] },
                        "shape": { "type": "array", "items": { "type": "integer", "minimum": 0 } },
                        "data": { "type": "string", "contentEncoding": "base64" },
                    },
                    "required": ["dtype", "shape", "data"],
                    "additionalProperties": false,
                },
            ],
        })
    }
}

impl Tensor {
    /// The second form, of either.
    fn bytes(&self) -> Result<std::borrow::Cow<'_, Bytes>> {
        match self {
            Self::Bytes(bytes) => Ok(std::borrow::Cow::Borrowed(bytes)),
            Self::Lists(rows) => {
                Bytes::of_lists(rows).map(std::borrow::Cow::Owned).map_err(Error::invalid)
            }
        }
    }

    /// Rows of `dimension` values.
    pub fn rows(&self, dimension: usize, to: &DataType) -> Result<FixedSizeListArray> {
        self.bytes()?.rows(dimension, to)
    }

    /// All values, as a codebook of product quantization has them: by sub-vector, code and dimension.
    pub fn codebook(&self, shape: [usize; 3], to: &DataType) -> Result<ArrayRef> {
        self.bytes()?.codebook(shape, to)
    }

    pub fn num_rows(&self) -> u64 {
        match self {
            Self::Lists(rows) => rows.len() as u64,
            Self::Bytes(bytes) => bytes.shape.first().copied().unwrap_or(0),
        }
    }
}

impl Bytes {
    fn of_lists(rows: &[Value]) -> std::result::Result<Self, String> {
        let mut shape = vec![rows.len() as u64];
        let mut level: Vec<&Value> = rows.iter().collect();
        while let Some(Value::Array(first)) = level.first() {
            let width = first.len();
            let mut inner = Vec::with_capacity(level.len() * width);
            for (at, value) in level.iter().enumerate() {
                match value {
                    Value::Array(values) if values.len() == width => inner.extend(values),
                    _ => return Err(format!("list {at} has not {width} values as the first one")),
                }
            }
            shape.push(width as u64);
            level = inner;
        }
        let mut data = Vec::with_capacity(level.len() * 8);
        for value in level {
            let number = value.as_f64().ok_or_else(|| format!("{value} is no number"))?;
            data.extend(number.to_le_bytes());
        }
        Ok(Self { dtype: "float64".into(), shape, data: Blob(data) })
    }

    fn data_type(&self) -> Result<DataType> {
        match self.dtype.as_str() {
            "float16" => Ok(DataType::Float16),
            "float32" => Ok(DataType::Float32),
            "float64" => Ok(DataType::Float64),
            "uint8" => Ok(DataType::UInt8),
            other => Err(Error::invalid(format!(
                "dtype {other:?} is not among float16, float32, float64, uint8"
            ))),
        }
    }

    /// All values in their order, as another type.
    fn values(&self, to: &DataType) -> Result<ArrayRef> {
        let from = self.data_type()?;
        let count = self.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let width = from.primitive_width().unwrap_or(1) as u64;
        let bytes = self.data.0.len() as u64;
        let count = count.filter(|n| n.checked_mul(width) == Some(bytes)).ok_or_else(|| {
            Error::invalid(format!(
                "{bytes} bytes of data do not make a {} of shape {:?}",
                self.dtype, self.shape
            ))
        })?;
        let data = ArrayData::builder(from)
            .len(count as usize)
            .add_buffer(Buffer::from(self.data.0.as_slice()))
            .align_buffers(true)
            .build()?;
        let cast = arrow_cast::cast(&make_array(data), to)?;
        let finite = match cast.data_type() {
            DataType::UInt8 => true,
            _ => {
                let wide = arrow_cast::cast(&cast, &DataType::Float64)?;
                let wide = wide.as_primitive::<arrow_array::types::Float64Type>();
                wide.null_count() == 0 && wide.values().iter().all(|v| v.is_finite())
            }
        };
        if !finite {
            return Err(Error::invalid("a value is null or not finite"));
        }
        Ok(cast)
    }

    fn rows(&self, dimension: usize, to: &DataType) -> Result<FixedSizeListArray> {
        match self.shape.as_slice() {
            [rows, width] if *width == dimension as u64 && *rows > 0 => {}
            shape => {
                return Err(Error::invalid(format!(
                    "shape {shape:?}, expected at least one row of {dimension} values, the column's \
                     dimension"
                )));
            }
        }
        Ok(lists(self.values(to)?, dimension)?)
    }

    fn codebook(&self, shape: [usize; 3], to: &DataType) -> Result<ArrayRef> {
        let expected: usize = shape.iter().product();
        let given = self.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let whole = self.shape == shape.map(|n| n as u64);
        let flat = self.shape.len() < 3 && given == Some(expected as u64);
        if !whole && !flat {
            return Err(Error::invalid(format!(
                "shape {:?}, expected {shape:?} (sub-vectors, codes, values of each)",
                self.shape
            )));
        }
        self.values(to)
    }
}

fn lists(values: ArrayRef, width: usize) -> Result<FixedSizeListArray, arrow_schema::ArrowError> {
    let item = Arc::new(Field::new("item", values.data_type().clone(), true));
    FixedSizeListArray::try_new(item, width as i32, values, None)
}

/// A trained model.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    /// A row per partition.
    pub centroids: FixedSizeListArray,
    /// Of product quantization.
    pub codebook: Option<ArrayRef>,
    /// Lance's metadata of the rotation of RaBitQ, as JSON.
    pub rabitq: Option<String>,
}

const FILE: &str = "model.arrow";
const CENTROIDS: &str = "ivf_centroids";
const CODEBOOK: &str = "pq_codebook";
const RABITQ: &str = "rabitq_model";

/// Where a model is, below the dataset's root: where Lance's cleanup looks for what nobody refers to.
fn path(id: Uuid) -> String {
    format!("_indices/{id}/{FILE}")
}

impl Model {
    /// Write it, under a name of the job's.
    pub async fn write(&self, cx: &Running, uri: &str) -> Result<(Uuid, WrittenFile)> {
        let bytes = self.to_ipc()?;
        let id = cx.marks().mark().new_uuid();
        let file = WrittenFile { path: path(id), size: bytes.len() as u64, base: None };
        cx.wrote(file.clone());
        let (store, root) = cx.datasets().store(uri, &cx.call.storage_options).await?;
        // Lance's writer of local files does not say that a disk is full.
        let put = store.inner.put(&join(&root, &file.path), bytes.into()).await;
        put.map_err(|e| Error::from(e).context(&file.path))?;
        Ok((id, file))
    }

    pub async fn read(cx: &Running, uri: &str, id: Uuid) -> Result<Self> {
        let (store, root) = cx.datasets().store(uri, &cx.call.storage_options).await?;
        let path = path(id);
        let bytes = match store.read_one_all(&join(&root, &path)).await {
            Ok(bytes) => bytes,
            Err(lance::Error::NotFound { .. }) => {
                return Err(Error::new(
                    ErrorCode::RetryableConflict,
                    format!(
                        "the trained model {path} is gone (was the job aborted, or the dataset \
                         cleaned up?); prepare the job again"
                    ),
                ));
            }
            Err(error) => return Err(Error::from(error).context(path)),
        };
        Self::from_ipc(&bytes)
            .map_err(|e| e.with_code(ErrorCode::Decode).context(format!("the model {path}")))
    }

    fn to_ipc(&self) -> Result<Vec<u8>> {
        fn one(values: &dyn Array) -> Result<ArrayRef> {
            let item = Arc::new(Field::new("item", values.data_type().clone(), true));
            let offsets = OffsetBuffer::from_lengths([values.len()]);
            Ok(Arc::new(ListArray::try_new(item, offsets, values.slice(0, values.len()), None)?))
        }
        let mut columns = vec![(CENTROIDS, one(&self.centroids)?)];
        if let Some(codebook) = &self.codebook {
            columns.push((CODEBOOK, one(codebook.as_ref())?));
        }
        if let Some(rabitq) = &self.rabitq {
            columns.push((RABITQ, Arc::new(StringArray::from(vec![rabitq.as_str()]))));
        }
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, array)| Field::new(*name, array.data_type().clone(), false))
            .collect();
        let arrays = columns.into_iter().map(|(_, array)| array).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?;
        let mut bytes = Vec::new();
        let mut writer = arrow_ipc::writer::StreamWriter::try_new(&mut bytes, &batch.schema())?;
        writer.write(&batch)?;
        writer.finish()?;
        drop(writer);
        Ok(bytes)
    }

    fn from_ipc(bytes: &[u8]) -> Result<Self> {
        let bad = |what: &str| Error::new(ErrorCode::Decode, what.to_owned());
        check_ipc(bytes).map_err(|why| bad(&why))?;
        let mut reader = arrow_ipc::reader::StreamReader::try_new(Cursor::new(bytes), None)?;
        let batch = reader.next().ok_or_else(|| bad("it is empty"))??;
        let column = |name: &str| batch.column_by_name(name).filter(|c| c.len() == 1);
        let list = |name: &str| {
            let list = column(name)?.as_list_opt::<i32>()?;
            (!list.is_null(0)).then(|| list.value(0))
        };
        let centroids = list(CENTROIDS).and_then(|c| c.as_fixed_size_list_opt().cloned());
        Ok(Self {
            centroids: centroids.ok_or_else(|| bad("it has no centroids"))?,
            codebook: list(CODEBOOK),
            rabitq: column(RABITQ)
                .and_then(|c| c.as_string_opt::<i32>())
                .map(|text| text.value(0).to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_in_both_forms_are_the_same_numbers() {
        let lists: Tensor = serde_json::from_str("[[1, 2.5], [3, 4]]").unwrap();
        let rows = lists.rows(2, &DataType::Float32).unwrap();
        assert_eq!(rows.len(), 2);
        let bytes = Tensor::Bytes(lists.bytes().unwrap().into_owned());
        assert_eq!(bytes.rows(2, &DataType::Float32).unwrap(), rows);
        for tensor in [&lists, &bytes] {
            let text = serde_json::to_string(tensor).unwrap();
            assert_eq!(serde_json::from_str::<Tensor>(&text).unwrap(), *tensor);
            let config = bincode::config::standard();
            let wire = bincode::serde::encode_to_vec(tensor, config).unwrap();
            let (again, _): (Tensor, _) = bincode::serde::decode_from_slice(&wire, config).unwrap();
            assert_eq!(again, *tensor);
            assert!(tensor.rows(3, &DataType::Float32).is_err());
        }
        for bad in ["3", "{\"dtype\": \"float32\"}"] {
            assert!(serde_json::from_str::<Tensor>(bad).is_err(), "{bad}");
        }
        for bad in ["[[1], [2, 3]]", "[[\"x\"]]", "[]", "[1, [2]]"] {
            let tensor: Tensor = serde_json::from_str(bad).unwrap();
            assert!(tensor.rows(2, &DataType::Float32).is_err(), "{bad}");
        }
        let short = Bytes { shape: vec![3, 2], ..lists.bytes().unwrap().into_owned() };
        assert!(short.rows(2, &DataType::Float32).is_err());
    }

    #[test]
    fn a_model_survives_its_file() {
        let rows: Tensor = serde_json::from_str("[[1, 2], [3, 4], [5, 6]]").unwrap();
        let model = Model {
            centroids: rows.rows(2, &DataType::Float32).unwrap(),
            codebook: Some(rows.bytes().unwrap().values(&DataType::Float32).unwrap()),
            rabitq: Some("{}".into()),
        };
        let again = Model::from_ipc(&model.to_ipc().unwrap()).unwrap();
        assert_eq!(again.centroids, model.centroids);
        assert_eq!(again.codebook.unwrap().to_data(), model.codebook.unwrap().to_data());
        assert_eq!(again.rabitq, model.rabitq);
        assert!(Model::from_ipc(b"no arrow").is_err());
    }
}
