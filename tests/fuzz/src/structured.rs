//! Valid values: specs, jobs and tasks by the library's own JSON Schema, so that operations to come are
//! covered as they are, and rows of results. What goes in comes out.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use serde_json::{Map, Number, Value, json};

use crate::abi::{Broken, Check};
use crate::columns::{self, Column, Table, Values};
use crate::import;
use crate::mutate::{frame, unframe};
use crate::rng::Rng;
use crate::targets::{self, BINARY, Fuzz, JSON, STRUCTURED};

type Values_ = BoxedStrategy<Value>;

fn text() -> BoxedStrategy<String> {
    prop_oneof![
        "[a-z_.]{0,8}",
        any::<String>(),
        Just("\u{0}".to_owned()),
        Just("\u{10ffff}\u{feff}\u{202e}".to_owned()),
    ]
    .boxed()
}

fn integer(schema: &Value) -> Values_ {
    let least = schema["minimum"].as_i64().unwrap_or(i64::MIN);
    let range = match schema["format"].as_str() {
        Some("uint8") => (0, u64::from(u8::MAX)),
        Some("uint32") => (0, u64::from(u32::MAX)),
        Some("int32") => {
            return any::<i32>().prop_map(Value::from).boxed();
        }
        _ => (0, u64::MAX),
    };
    let low = range.0.max(u64::try_from(least).unwrap_or(0));
    prop_oneof![low..=range.1.min(low + 1000), low..=range.1, Just(range.1), Just(low)]
        .prop_map(Value::from)
        .boxed()
}

/// Whether anything fits: `"not": {}` says nothing does, and an object cannot do without what it requires.
fn possible(root: &Value, schema: &Value) -> bool {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return possible(root, &root["$defs"][name]);
    }
    let never = schema["not"].as_object().is_some_and(serde_json::Map::is_empty);
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let impossible = |name: &str| {
        let property = &schema["properties"][name];
        // Deeper schemas may refer to themselves.
        let target = property["$ref"].as_str().and_then(|r| r.rsplit('/').next());
        let target = target.map_or(property, |name| &root["$defs"][name]);
        target["not"].as_object().is_some_and(serde_json::Map::is_empty)
    };
    !never && !required.into_iter().any(impossible)
}

/// Values that a JSON Schema allows, as far as this library's schema uses it.
fn by_schema(root: &Value, schema: &Value, key: &str, depth: u32) -> Values_ {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return by_schema(root, &root["$defs"][name], key, depth);
    }
    if !schema["const"].is_null() {
        return Just(schema["const"].clone()).boxed();
    }
    for choice in ["enum", "oneOf", "anyOf"] {
        if let Some(options) = schema[choice].as_array() {
            let options: Vec<Values_> = options
                .iter()
                .filter(|o| possible(root, o))
                .map(|o| match choice {
                    "enum" => Just(o.clone()).boxed(),
                    _ => by_schema(root, o, key, depth),
                })
                .collect();
            return proptest::strategy::Union::new(options).boxed();
        }
    }
    let mut types: Vec<&str> = schema["type"].as_array().map_or_else(
        || schema["type"].as_str().into_iter().collect(),
        |types| types.iter().filter_map(Value::as_str).collect(),
    );
    if types.is_empty() {
        // Anything.
        types = vec!["null", "boolean", "integer", "string"];
    }
    let options: Vec<Values_> =
        types.iter().map(|t| of_type(root, schema, t, key, depth)).collect();
    proptest::strategy::Union::new(options).boxed()
}

fn of_type(root: &Value, schema: &Value, kind: &str, key: &str, depth: u32) -> Values_ {
    match kind {
        "number" if key == "older_than" => {
            (0u32..1_000_000).prop_map(|n| Value::from(f64::from(n) / 4.0)).boxed()
        }
        "null" => Just(Value::Null).boxed(),
        "boolean" => any::<bool>().prop_map(Value::from).boxed(),
        "integer" if schema["format"] == "int64" => any::<i64>().prop_map(Value::from).boxed(),
        "integer" => integer(schema),
        // What an f32 holds.
        "number" => any::<f32>()
            .prop_filter_map("finite", |f| Number::from_f64(f64::from(f)).map(Value::Number))
            .boxed(),
        "string" if schema["contentEncoding"] == "base64" => {
            // Groups of three bytes need no padding.
            vec("[A-Za-z0-9+/]{4}", 0..20).prop_map(|groups| groups.concat().into()).boxed()
        }
        "string" if matches!(key, "id" | "job_id" | "model") => any::<[u8; 16]>()
            .prop_map(|b| {
                let hex: String = b.iter().map(|b| format!("{b:02x}")).collect();
                let cut = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
                cut.join("-").into()
            })
            .boxed(),
        // A URI may carry no password.
        "string" if key == "older_than" => Just(Value::from("7d")).boxed(),
        "string" if key == "uri" || key == "sources" => {
            "[a-zA-Z0-9_./ \u{e4}*-]{0,20}".prop_map(Value::from).boxed()
        }
        "string" => text().prop_map(Value::from).boxed(),
        "array" => match schema["prefixItems"].as_array() {
            Some(items) => items
                .iter()
                .map(|i| by_schema(root, i, key, depth + 1))
                .collect::<Vec<_>>()
                .prop_map(Value::Array)
                .boxed(),
            None => vec(by_schema(root, &schema["items"], key, depth + 1), 0..4)
                .prop_map(Value::Array)
                .boxed(),
        },
        _ => object(root, schema, depth),
    }
}

fn object(root: &Value, schema: &Value, depth: u32) -> Values_ {
    if let Some(properties) = schema["properties"].as_object() {
        let required: Vec<&str> = schema["required"]
            .as_array()
            .map_or_else(Vec::new, |r| r.iter().filter_map(Value::as_str).collect());
        let fields: Vec<BoxedStrategy<Option<(String, Value)>>> = properties
            .iter()
            .map(|(key, schema)| {
                let name = key.clone();
                let value = match (key.as_str(), depth) {
                    // Of the envelope.
                    ("format", 0) => Just(Value::from(1)).boxed(),
                    _ => by_schema(root, schema, key, depth + 1),
                };
                let field = value.prop_map(move |v| Some((name.clone(), v)));
                if required.contains(&key.as_str()) {
                    field.boxed()
                } else {
                    prop_oneof![Just(None), field].boxed()
                }
            })
            .collect();
        return fields
            .prop_map(|fields| Value::Object(fields.into_iter().flatten().collect()))
            .boxed();
    }
    let values = match &schema["additionalProperties"] {
        Value::Object(_) => by_schema(root, &schema["additionalProperties"], "", depth + 1),
        _ => prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            // Parameters with more digits than the parser keeps are refused.
            (any::<i32>(), 0..6u32).prop_filter_map("finite", |(digits, places)| {
                let number = f64::from(digits) / 10f64.powi(places as i32);
                Number::from_f64(number).map(Value::Number)
            }),
            text().prop_map(Value::from),
            vec(any::<i32>(), 0..3).prop_map(|v| json!(v)),
        ]
        .boxed(),
    };
    btree_map(text(), values, 0..4)
        .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>()))
        .boxed()
}

/// Everything that was said is there again; what was not said may stand as its default.
fn contains(said: &Value, answered: &Value, path: &str) -> Result<(), String> {
    match (said, answered) {
        (Value::Null, Value::Null) => Ok(()),
        (Value::Object(said), Value::Object(answered)) => {
            // What wrote an envelope is said by who writes it again.
            let version = |key: &str| path.is_empty() && ["lance", "lance_tasks"].contains(&key);
            for (key, value) in said.iter().filter(|(k, v)| !v.is_null() && !version(k)) {
                let other = answered.get(key).unwrap_or(&Value::Null);
                contains(value, other, &format!("{path}.{key}"))?;
            }
            Ok(())
        }
        (Value::Array(said), Value::Array(answered)) if said.len() == answered.len() => said
            .iter()
            .zip(answered)
            .try_for_each(|(one, other)| contains(one, other, &format!("{path}[]"))),
        // A source may be said as its bare URI, a blob column as its name.
        (Value::String(_), Value::Object(object))
            if ["uri", "name"].iter().any(|key| object.get(*key) == Some(said)) =>
        {
            Ok(())
        }
        (Value::Number(one), Value::Number(other))
            if one.as_f64().map(|f| f as f32) == other.as_f64().map(|f| f as f32)
                && (one.is_f64() || other.is_f64()) =>
        {
            Ok(())
        }
        (Value::String(text), Value::Number(seconds))
            if path.ends_with(".older_than")
                && text == "7d"
                && seconds.as_u64() == Some(604_800) =>
        {
            Ok(())
        }
        // Durations are whole microseconds.
        (Value::Number(one), Value::Number(other))
            if path.ends_with(".older_than")
                && one.as_f64().zip(other.as_f64()).is_some_and(|(a, b)| (a - b).abs() < 1e-6) =>
        {
            Ok(())
        }
        (one, other) if one == other => Ok(()),
        (one, other) => Err(format!("{path}: {one} came back as {other}")),
    }
}

fn fail(broken: Broken) -> TestCaseError {
    TestCaseError::fail(broken.0)
}

fn descriptor(fuzz: &Fuzz<'_>, value: &Value) -> Result<(), TestCaseError> {
    let text = value.to_string();
    fuzz.api.slot.put(STRUCTURED, text.as_bytes());
    let back = fuzz.api.convert(text.as_bytes(), JSON).map_err(fail)?;
    let back = back.map_err(|f| TestCaseError::fail(format!("{}: {text}", f.message)))?;
    let back: Value =
        serde_json::from_slice(&back).map_err(|e| TestCaseError::fail(e.to_string()))?;
    contains(value, &back, "").map_err(TestCaseError::fail)?;
    let binary = fuzz.api.convert(text.as_bytes(), BINARY).map_err(fail)?;
    prop_assert!(binary.is_ok_and(|b| b.starts_with(b"LTSK")));
    targets::convert(fuzz, text.as_bytes()).map_err(fail)
}

/// Other values in the columns of a real table of results.
fn with_values(table: &Table, texts: &[String], numbers: &[u64]) -> Table {
    let mut texts = texts.iter().cycle();
    let mut numbers = numbers.iter().cycle();
    fn fill<'a>(
        column: &mut Column,
        texts: &mut impl Iterator<Item = &'a String>,
        numbers: &mut impl Iterator<Item = &'a u64>,
    ) {
        // What must be an id or one of a few words stays.
        let fixed =
            column.name.ends_with("_id") || ["status", "error"].contains(&column.name.as_str());
        match &mut column.values {
            _ if fixed => {}
            Values::Text { items, .. } => {
                items.iter_mut().zip(texts).for_each(|(item, text)| *item = text.clone().into());
            }
            Values::Fixed { width, data, .. } => {
                let mut numbers = numbers.flat_map(|n| n.to_le_bytes()[..*width].to_vec());
                data.iter_mut().for_each(|b| *b = numbers.next().unwrap_or_default());
            }
            Values::Struct(children) => children.iter_mut().for_each(|c| fill(c, texts, numbers)),
            Values::List { child, .. } => fill(child, texts, numbers),
            Values::Bool(_) | Values::Null(_) => {}
        }
    }
    let mut table = table.clone();
    table.columns.iter_mut().for_each(|c| fill(c, &mut texts, &mut numbers));
    table
}

fn row(fuzz: &Fuzz<'_>, table: &Table) -> Result<(), TestCaseError> {
    fuzz.api.slot.put(STRUCTURED, format!("{table:?}").as_bytes());
    let (stream, _) = columns::export(table.clone());
    let rows = fuzz.api.table_to_rows(stream).map_err(fail)?;
    let rows = rows.map_err(|f| TestCaseError::fail(f.message))?;
    prop_assert_eq!(unframe(&rows).len(), table.rows);
    let again = fuzz.api.rows_to_table(&rows).map_err(fail)?;
    let again = again.map_err(|f| TestCaseError::fail(f.message))?;
    let again = import::import(again).map_err(TestCaseError::fail)?;
    prop_assert_eq!(&again.columns, &table.columns);
    unframe(&rows).iter().try_for_each(|row| targets::convert(fuzz, row)).map_err(fail)?;
    prop_assert!(frame(&unframe(&rows)) == rows);
    Ok(())
}

/// Run this many cases; a failing one is made smaller by proptest.
pub fn run(fuzz: &Fuzz<'_>, schema: &Value, seed: u64, cases: u32) -> Check<()> {
    let mut rng = Rng::new(seed, u64::MAX);
    let mut seed = [0; 32];
    seed.chunks_mut(8).for_each(|c| c.copy_from_slice(&rng.next().to_le_bytes()));
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 4000,
        max_global_rejects: cases.max(1024),
        ..Config::default()
    };
    let kinds = ["spec", "job", "task"].map(|k| by_schema(schema, &schema["$defs"][k], "", 0));
    let values = proptest::strategy::Union::new(kinds);
    let tables = fuzz.corpus.tables.len() - 1;
    let numbers = prop_oneof![any::<u64>(), Just(0), Just(u64::MAX), Just(i64::MAX as u64)];
    let rows = (0..tables, vec(text(), 1..30), vec(numbers, 1..30))
        .prop_map(|(at, texts, numbers)| with_values(&fuzz.corpus.tables[at], &texts, &numbers));
    let test_rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(config, test_rng);
    let descriptors = runner.run(&values, |value| descriptor(fuzz, &value));
    said(descriptors, Value::to_string)?;
    said(runner.run(&rows, |table| row(fuzz, &table)), |table| format!("{table:?}"))
}

fn said<T>(outcome: Result<(), TestError<T>>, show: impl Fn(&T) -> String) -> Check<()> {
    match outcome {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, value)) => Err(Broken(format!("{why}\ninput: {}", show(&value)))),
        Err(TestError::Abort(why)) => Err(Broken(format!("gave up: {why}"))),
    }
}
