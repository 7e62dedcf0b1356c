//! Two encodings of a descriptor (spec, job, task), told apart by their first bytes.
//!
//! JSON is for people; a job or task stands in an envelope that names its kind and versions, a spec
//! is written plainly. The binary form is
//!
//! ```text
//! "LTSK"  format:u16  kind  lance_tasks_version  lance_version  length:u64  crc32:u32  payload
//! ```
//!
//! with little-endian integers, strings as one length byte and UTF-8, the checksum over everything
//! but itself, and a bincode 2 payload of our own types only (Lance's travel inside as JSON or
//! protobuf). Decoding is total: any bytes give a value or an [`Error`] within [`MAX_BYTES`].

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::error::{Error, ErrorCode, Result};

/// The wire format that this library writes; it reads every one up to it.
pub const FORMAT_VERSION: u16 = 1;
/// The version of Lance that this library is built on.
pub const LANCE_VERSION: &str = "14.0.2";
/// No descriptor may be larger.
pub const MAX_BYTES: usize = 256 << 20;

const MAGIC: &[u8; 4] = b"LTSK";

/// One of the kinds that an envelope may hold.
pub trait Descriptor: Serialize + DeserializeOwned {
    /// The kind's name in the envelope.
    const KIND: &'static str;

    /// What no decoder can know: whether the parts agree.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        encode_binary(self)
    }

    fn to_json(&self) -> Result<String> {
        encode_json(self)
    }

    /// Decode either encoding.
    fn decode(bytes: &[u8]) -> Result<Self> {
        limit::<Self>(bytes)?;
        let value = match encoding_of(bytes) {
            Some(Encoding::Binary) => decode_binary(bytes)?,
            Some(Encoding::Json) => decode_json(bytes)?,
            None => return Err(not_a_descriptor(bytes)),
        };
        Self::validate(&value)?;
        Ok(value)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Binary,
}

pub fn encoding_of(bytes: &[u8]) -> Option<Encoding> {
    if bytes.starts_with(MAGIC) {
        return Some(Encoding::Binary);
    }
    let first = bytes.iter().find(|b| !b.is_ascii_whitespace())?;
    (*first == b'{').then_some(Encoding::Json)
}

/// The kind that an envelope names; a JSON object without an envelope is a `spec`.
pub fn kind_of(bytes: &[u8]) -> Result<String> {
    match encoding_of(bytes) {
        Some(Encoding::Binary) => Ok(Header::read(bytes)?.kind),
        Some(Encoding::Json) => {
            let value: Value = parse_json("descriptor", bytes)?;
            Ok(value.get("kind").and_then(Value::as_str).unwrap_or("spec").to_owned())
        }
        None => Err(not_a_descriptor(bytes)),
    }
}

fn decode_error(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::Decode, message)
}

fn not_a_descriptor(bytes: &[u8]) -> Error {
    if bytes.is_empty() {
        return decode_error("the descriptor is empty");
    }
    decode_error(format!(
        "not a descriptor: {} bytes that begin neither with \"LTSK\" (binary) nor with '{{' (JSON)",
        bytes.len()
    ))
}

fn limit<T: Descriptor>(bytes: &[u8]) -> Result<()> {
    if bytes.len() > MAX_BYTES {
        return Err(decode_error(format!(
            "{}: {} bytes are over the limit of {MAX_BYTES}",
            T::KIND,
            bytes.len()
        )));
    }
    Ok(())
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_BYTES>()
}

fn encode_binary<T: Descriptor>(value: &T) -> Result<Vec<u8>> {
    let payload = bincode::serde::encode_to_vec(value, config())
        .map_err(|e| Error::internal(format!("encode {}: {e}", T::KIND)))?;
    let mut out = Vec::with_capacity(payload.len() + 64);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    for text in [T::KIND, env!("CARGO_PKG_VERSION"), LANCE_VERSION] {
        out.push(text.len() as u8);
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    let crc = checksum(&out, &payload);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&payload);
    Ok(out)
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

struct Header {
    kind: String,
    lance_tasks: String,
    length: usize,
    crc: u32,
    /// Bytes before the checksum.
    before_crc: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self> {
        let mut at = MAGIC.len();
        let mut take = |n: usize| -> Result<&[u8]> {
            let part = bytes.get(at..at + n).ok_or_else(|| {
                decode_error(format!("the header is cut short after {} bytes", bytes.len()))
            })?;
            at += n;
            Ok(part)
        };
        let format = u16::from_le_bytes(take(2)?.try_into().unwrap_or_default());
        if format == 0 || format > FORMAT_VERSION {
            return Err(Error::new(
                ErrorCode::VersionMismatch,
                format!(
                    "the descriptor has wire format {format}, this library (lance-tasks {}, Lance \
                     {LANCE_VERSION}) reads 1 to {FORMAT_VERSION}",
                    env!("CARGO_PKG_VERSION")
                ),
            ));
        }
        let mut text = |what: &str| -> Result<String> {
            let n = take(1)?[0] as usize;
            let part = take(n)?;
            std::str::from_utf8(part)
                .map(str::to_owned)
                .map_err(|_| decode_error(format!("the header's {what} is not UTF-8")))
        };
        let kind = text("kind")?;
        let lance_tasks = text("lance-tasks version")?;
        text("Lance version")?;
        let length = u64::from_le_bytes(take(8)?.try_into().unwrap_or_default());
        let crc = u32::from_le_bytes(take(4)?.try_into().unwrap_or_default());
        let length = usize::try_from(length)
            .ok()
            .filter(|n| *n <= MAX_BYTES)
            .ok_or_else(|| decode_error(format!("the header states {length} bytes of payload")))?;
        Ok(Self { kind, lance_tasks, length, crc, before_crc: at - 4 })
    }
}

fn decode_binary<T: Descriptor>(bytes: &[u8]) -> Result<T> {
    let header = Header::read(bytes)?;
    check_kind::<T>(&header.kind)?;
    let payload = &bytes[header.before_crc + 4..];
    if payload.len() != header.length {
        return Err(decode_error(format!(
            "{}: the payload has {} bytes, the header states {}",
            T::KIND,
            payload.len(),
            header.length
        )));
    }
    if checksum(&bytes[..header.before_crc], payload) != header.crc {
        return Err(decode_error(format!("{}: the checksum does not match", T::KIND)));
    }
    let (value, used) = bincode::serde::decode_from_slice(payload, config()).map_err(|e| {
        decode_error(format!("{} written by lance-tasks {}: {e}", T::KIND, header.lance_tasks))
    })?;
    if used != payload.len() {
        return Err(decode_error(format!("{}: {} bytes too many", T::KIND, payload.len() - used)));
    }
    Ok(value)
}

fn check_kind<T: Descriptor>(kind: &str) -> Result<()> {
    if kind == T::KIND {
        return Ok(());
    }
    let known = ["spec", "job", "task"].contains(&kind);
    Err(Error::new(
        if known { ErrorCode::InvalidArgument } else { ErrorCode::VersionMismatch },
        format!("expected a {}, this is a {kind:?}", T::KIND),
    ))
}

fn parse_json(what: &str, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| decode_error(format!("{what}: not valid JSON: {e}")))
}

fn encode_json<T: Descriptor>(value: &T) -> Result<String> {
    let body = serde_json::to_value(value)?;
    let json = if T::KIND == "spec" {
        untag(body)
    } else {
        json!({
            "kind": T::KIND,
            "format": FORMAT_VERSION,
            "lance_tasks": env!("CARGO_PKG_VERSION"),
            "lance": LANCE_VERSION,
            T::KIND: body,
        })
    };
    Ok(serde_json::to_string_pretty(&json)?)
}

fn decode_json<T: Descriptor>(bytes: &[u8]) -> Result<T> {
    let value = parse_json(T::KIND, bytes)?;
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or("spec");
    check_kind::<T>(kind)?;
    let body = if T::KIND == "spec" {
        tag(value)?
    } else {
        let format = value.get("format").and_then(Value::as_u64).unwrap_or(0);
        if format == 0 || format > u64::from(FORMAT_VERSION) {
            return Err(Error::new(
                ErrorCode::VersionMismatch,
                format!(
                    "the {kind} has wire format {format}, this library reads 1 to {FORMAT_VERSION}"
                ),
            ));
        }
        match value {
            Value::Object(mut map) => map.remove(T::KIND),
            _ => None,
        }
        .ok_or_else(|| decode_error(format!("the envelope has no \"{}\"", T::KIND)))?
    };
    serde_path_to_error::deserialize(body).map_err(|e| {
        // The enum's own tag stands in front of each path of a spec.
        let path = e.path().to_string();
        let path = path.split_once('.').map_or("", |(_, rest)| rest).to_owned();
        let e = e.into_inner();
        let e = if path.is_empty() { e.to_string() } else { format!("{path}: {e}") };
        let code = if T::KIND == "spec" { ErrorCode::InvalidArgument } else { ErrorCode::Decode };
        Error::new(code, format!("{}: {e}", T::KIND))
    })
}

/// `{"write": {..}}` (how serde tags an enum) to `{"operation": "write", ..}` (how people write it).
fn untag(value: Value) -> Value {
    let Value::Object(outer) = value else { return value };
    let mut out = serde_json::Map::new();
    for (name, body) in outer {
        out.insert("operation".into(), Value::String(name));
        if let Value::Object(fields) = body {
            out.extend(fields.into_iter().filter(|(_, v)| !v.is_null()));
        }
    }
    Value::Object(out)
}

fn tag(value: Value) -> Result<Value> {
    let Value::Object(mut fields) = value else {
        return Err(decode_error("spec: expected a JSON object"));
    };
    let known = crate::operations::NAMES;
    match fields.remove("operation") {
        Some(Value::String(name)) if known.contains(&name.as_str()) => {
            Ok(json!({ name: Value::Object(fields) }))
        }
        Some(other) => Err(Error::invalid(format!(
            "spec: unknown operation {other}, known are {}",
            known.join(", ")
        ))),
        None => Err(Error::invalid(format!(
            "spec: \"operation\" is missing, one of {}",
            known.join(", ")
        ))),
    }
}

/// Bytes that read as base64 in JSON and as they are in the binary form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            use base64::Engine;
            serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(&self.0))
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> serde::Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        if deserializer.is_human_readable() {
            use base64::Engine;
            let text = String::deserialize(deserializer)?;
            base64::engine::general_purpose::STANDARD
                .decode(text)
                .map(Blob)
                .map_err(|e| D::Error::custom(format!("base64: {e}")))
        } else {
            struct Visitor;
            impl serde::de::Visitor<'_> for Visitor {
                type Value = Vec<u8>;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("bytes")
                }
                fn visit_bytes<E>(self, v: &[u8]) -> Result<Vec<u8>, E> {
                    Ok(v.to_vec())
                }
                fn visit_byte_buf<E>(self, v: Vec<u8>) -> Result<Vec<u8>, E> {
                    Ok(v)
                }
            }
            deserializer.deserialize_byte_buf(Visitor).map(Blob)
        }
    }
}

impl schemars::JsonSchema for Blob {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Blob".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "contentEncoding": "base64" })
    }
}

/// A JSON value that stands as itself in JSON and as text in the binary form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Json(pub serde_json::Map<String, Value>);

impl Serialize for Json {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error as _;
        if serializer.is_human_readable() {
            self.0.serialize(serializer)
        } else {
            let text = serde_json::to_string(&self.0).map_err(S::Error::custom)?;
            serializer.serialize_str(&text)
        }
    }
}

impl<'de> serde::Deserialize<'de> for Json {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let map: serde_json::Map<String, Value> = if deserializer.is_human_readable() {
            serde_json::Map::deserialize(deserializer)?
        } else {
            let text = String::deserialize(deserializer)?;
            serde_json::from_str(&text).map_err(D::Error::custom)?
        };
        match map.values().find_map(inexact) {
            None => Ok(Json(map)),
            Some(number) => Err(D::Error::custom(format!(
                "the number {number} has more digits than can be kept"
            ))),
        }
    }
}

/// A number that would be read back as another: the parser is exact up to some 15 digits.
pub(crate) fn inexact(value: &Value) -> Option<&serde_json::Number> {
    match value {
        Value::Number(number) if number.is_f64() => {
            let again = serde_json::from_str::<f64>(&number.to_string()).ok();
            (again != number.as_f64()).then_some(number)
        }
        Value::Array(values) => values.iter().find_map(inexact),
        Value::Object(map) => map.values().find_map(inexact),
        _ => None,
    }
}

impl schemars::JsonSchema for Json {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Json".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "object" })
    }
}
