//! The JSON Schema of specs, jobs, tasks and outcomes; committed as
//! `include/lance_tasks/lance_tasks.schema.json`.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::commit::{AbortReport, Outcome};
use crate::job::Job;
use crate::operations::Spec;
use crate::task::Task;

/// One document whose `$defs` hold `spec`, `job`, `task`, `outcome` and `abort_report`; a bare object is
/// taken as a spec, job or task.
pub fn json_schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let specs: Vec<Value> = Spec::schemas(&mut generator)
        .into_iter()
        .map(|(name, schema)| {
            let reference = schema.to_value();
            json!({ "operation": name, "schema": reference })
        })
        .collect();
    let job = generator.subschema_for::<Job>().to_value();
    let task = generator.subschema_for::<Task>().to_value();
    let outcome = generator.subschema_for::<Outcome>().to_value();
    let report = generator.subschema_for::<AbortReport>().to_value();
    let mut defs = generator.take_definitions(true);

    // A spec's struct knows nothing of the tag beside its fields.
    let mut names = Vec::new();
    for spec in &specs {
        let operation = spec["operation"].as_str().unwrap_or_default();
        let target = spec["schema"]["$ref"].as_str().unwrap_or_default();
        let target = target.rsplit('/').next().unwrap_or_default().to_owned();
        if let Some(Value::Object(object)) = defs.get_mut(&target) {
            object["properties"]["operation"] = json!({ "const": operation });
            object.insert("required".into(), json!(["operation", "uri"]));
        }
        names.push(json!({ "$ref": format!("#/$defs/{target}") }));
    }
    let envelope = |kind: &str, body: &Value| {
        json!({
            "type": "object",
            "properties": {
                "kind": { "const": kind },
                "format": { "type": "integer", "minimum": 1 },
                "lance_tasks": { "type": "string" },
                "lance": { "type": "string" },
                kind: body,
            },
            "required": ["kind", "format", kind],
        })
    };
    defs.insert("spec".into(), json!({ "oneOf": names }));
    defs.insert("job".into(), envelope("job", &job));
    defs.insert("task".into(), envelope("task", &task));
    defs.insert("outcome".into(), outcome);
    defs.insert("abort_report".into(), report);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lance-tasks",
        "anyOf": [
            { "$ref": "#/$defs/spec" },
            { "$ref": "#/$defs/job" },
            { "$ref": "#/$defs/task" },
        ],
        "$defs": defs,
    })
}
