//! Specs from flags: every option that the JSON Schema of an operation's spec knows is a flag, so that
//! an operation needs no line here.

use std::sync::OnceLock;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use lance_tasks::{Descriptor, Error, Result, Spec};
use serde_json::{Map, Value};

/// How an option is said on the command line.
#[derive(Debug, Clone, PartialEq)]
enum Kind {
    /// `--replace`, `--replace=false`
    Switch,
    Number,
    Text(Vec<String>),
    /// Several, separated by commas or by saying the flag again.
    List(Box<Kind>),
    /// `NAME=VALUE`, once or more.
    Map,
    Json,
}

/// An operation's options, as flags.
pub struct Options {
    operation: &'static str,
    /// What it does.
    pub about: String,
    options: Vec<(String, Kind, String)>,
}

impl Options {
    pub fn of(operation: &'static str) -> Self {
        match spec_of(operation) {
            Some(spec) => Self::in_object(operation, spec),
            None => Self { operation, about: String::new(), options: Vec::new() },
        }
    }

    /// The options of what an option is a list of: `sources` of a write.
    pub fn of_items(&self, option: &str) -> Self {
        let items = spec_of(self.operation)
            .and_then(|spec| spec.pointer(&format!("/properties/{option}/items")))
            .and_then(|items| {
                let choices = resolve(items)["anyOf"].as_array()?;
                choices.iter().map(resolve).find(|choice| choice["type"] == "object")
            });
        match items {
            Some(items) => Self::in_object(self.operation, items),
            None => Self { operation: self.operation, about: String::new(), options: Vec::new() },
        }
    }

    fn in_object(operation: &'static str, object: &'static Value) -> Self {
        let text =
            |value: &Value| value["description"].as_str().unwrap_or_default().replace('\n', " ");
        let properties = object["properties"].as_object().into_iter().flatten();
        let options = properties
            .filter(|(name, _)| *name != "operation")
            .map(|(name, property)| (name.clone(), Kind::of(property), text(property)))
            .collect();
        Self { operation, about: text(object), options }
    }

    /// The flags, named by `flag`; options that it gives no name have none.
    pub fn flags(
        &self,
        mut command: Command,
        heading: &'static str,
        flag: impl Fn(&str) -> Option<Names>,
    ) -> Command {
        for (name, kind, help) in &self.options {
            let Some(names) = flag(name) else { continue };
            let mut arg = Arg::new(names.id)
                .long(names.long)
                .aliases(names.aliases)
                .help(help.clone())
                .help_heading(heading);
            arg = match kind {
                Kind::Switch => arg
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
                    .value_parser(["true", "false"])
                    .hide_possible_values(true)
                    .value_name("BOOL"),
                Kind::Number => arg.value_name("NUMBER").allow_negative_numbers(true),
                Kind::Text(choices) if choices.is_empty() => arg.value_name("TEXT"),
                Kind::Text(choices) => {
                    let choices = choices.iter().map(|choice| leak(choice.clone()));
                    arg.value_name("CHOICE").value_parser(PossibleValuesParser::new(choices))
                }
                Kind::List(_) => {
                    arg.value_name("LIST").action(ArgAction::Append).value_delimiter(',')
                }
                Kind::Map => arg.value_name("NAME=VALUE").action(ArgAction::Append),
                Kind::Json => arg.value_name("JSON"),
            };
            command = command.arg(arg);
        }
        command
    }

    /// What the flags say, as a part of a spec.
    pub fn read(
        &self,
        matches: &ArgMatches,
        flag: impl Fn(&str) -> Option<Names>,
    ) -> Result<Map<String, Value>> {
        let mut values = Map::new();
        for (name, kind, _) in &self.options {
            let Some(names) = flag(name) else { continue };
            let Some(given) = matches.get_many::<String>(names.id) else { continue };
            let given: Vec<&str> = given.map(String::as_str).collect();
            let value = kind
                .parse(&given)
                .map_err(|why| Error::invalid(format!("option --{}: {why}", names.long)))?;
            values.insert(name.clone(), value);
        }
        Ok(values)
    }
}

/// A flag's names.
pub struct Names {
    pub id: &'static str,
    pub long: &'static str,
    pub aliases: Vec<&'static str>,
}

impl Names {
    /// `max-rows-per-file`, and as Lance says it, `max_rows_per_file`.
    pub fn new(long: &str, option: &str) -> Self {
        let long = leak(long.replace('_', "-"));
        let mut aliases = vec![leak(long.replace('-', "_"))];
        aliases.push(leak(option.replace('_', "-")));
        aliases.push(leak(option.to_owned()));
        aliases.sort_unstable();
        aliases.dedup();
        aliases.retain(|alias| *alias != long);
        Self { id: leak(format!("spec.{option}")), long, aliases }
    }
}

/// The parser wants names that live as long as the process.
fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

fn schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(lance_tasks::schema::json_schema)
}

fn spec_of(operation: &str) -> Option<&'static Value> {
    let specs = schema()["$defs"]["spec"]["oneOf"].as_array()?;
    specs.iter().map(resolve).find(|spec| spec["properties"]["operation"]["const"] == operation)
}

/// Follow `$ref`, and look through `anyOf: [x, null]`.
fn resolve(value: &'static Value) -> &'static Value {
    if let Some(name) = value["$ref"].as_str().and_then(|r| r.strip_prefix("#/$defs/")) {
        return &schema()["$defs"][name];
    }
    match value["anyOf"].as_array().map(Vec::as_slice) {
        Some([one, null]) if null["type"] == "null" => resolve(one),
        _ => value,
    }
}

fn any_of(property: &Value, name: &str) -> bool {
    property["anyOf"].as_array().is_some_and(|of| of.iter().any(|one| one["type"] == name))
}

impl Kind {
    fn of(property: &'static Value) -> Self {
        let property = resolve(property);
        let has = |name: &str| match &property["type"] {
            Value::String(one) => one == name,
            Value::Array(several) => several.iter().any(|one| one == name),
            _ => false,
        };
        // Choices with a description stand in `oneOf`, those without in an `enum`, within it or alone.
        let one_of = property["oneOf"].as_array().into_iter().flatten();
        let choices: Vec<String> = one_of
            .chain(std::iter::once(property))
            .flat_map(|c| c["enum"].as_array().into_iter().flatten().chain(c.get("const")))
            .filter_map(|choice| choice.as_str().map(str::to_owned))
            .collect();
        match () {
            () if !choices.is_empty() => Self::Text(choices),
            () if has("boolean") => Self::Switch,
            // What may be either is told apart by who reads it.
            () if has("string") && has("number") => Self::Text(Vec::new()),
            () if has("integer") || has("number") => Self::Number,
            () if has("string") => Self::Text(Vec::new()),
            () if has("array") => match Self::of(&property["items"]) {
                item @ (Self::Number | Self::Text(_)) => Self::List(Box::new(item)),
                _ => Self::Json,
            },
            () if property["additionalProperties"]["type"] == "string" => Self::Map,
            // A name stands for an object that has no more; the object goes by `--set`.
            () if any_of(property, "string") => Self::Text(Vec::new()),
            () => Self::Json,
        }
    }

    fn parse(&self, given: &[&str]) -> std::result::Result<Value, String> {
        let last = given.last().copied().unwrap_or_default();
        match self {
            Self::Switch => Ok(Value::Bool(last == "true")),
            Self::Number => match last.replace('_', "").parse::<serde_json::Number>() {
                Ok(number) => Ok(Value::Number(number)),
                Err(_) => Err(format!("{last:?} is no number")),
            },
            Self::Text(_) => Ok(Value::String(last.to_owned())),
            Self::List(item) => given.iter().map(|one| item.parse(&[one])).collect(),
            Self::Map => given
                .iter()
                .map(|pair| match pair.split_once('=') {
                    Some((name, value)) => Ok((name.to_owned(), Value::from(value))),
                    None => Err(format!("{pair:?} is not NAME=VALUE")),
                })
                .collect::<std::result::Result<Map<_, _>, _>>()
                .map(Value::Object),
            Self::Json => {
                serde_json::from_str(last).map_err(|e| format!("{last:?} is not JSON: {e}"))
            }
        }
    }
}

/// Put `key=value` settings into a spec: the value is JSON, or text where it is none. A dot in the key
/// reaches into an object: `params.zone_size=4096`.
pub fn set(spec: &mut Value, settings: &[String]) -> Result<()> {
    for setting in settings {
        let Some((key, text)) = setting.split_once('=') else {
            return Err(Error::invalid(format!("--set {setting:?} is not KEY=VALUE")));
        };
        let value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(_) if !text.starts_with(['{', '[', '"']) => Value::from(text),
            Err(e) => {
                return Err(Error::invalid(format!("--set {key}: {text:?} is not JSON: {e}")));
            }
        };
        let mut place = &mut *spec;
        for part in key.split('.') {
            let part =
                if place.get(part).is_some() { part.to_owned() } else { part.replace('-', "_") };
            if place.is_null() {
                *place = Value::Object(Map::new());
            }
            let Value::Object(map) = place else {
                return Err(Error::invalid(format!("--set {key}: {part:?} is in no object")));
            };
            place = map.entry(part).or_insert(Value::Null);
        }
        *place = value;
    }
    Ok(())
}

/// The spec with the places that it names made absolute, so that it means the same in every folder.
pub fn absolute(spec: &mut Value) {
    let absolute = |place: &mut Value| {
        let Some(text) = place.as_str() else { return };
        if !text.is_empty() && !text.contains("://") {
            let path = std::path::absolute(text).ok();
            if let Some(path) = path.and_then(|path| path.to_str().map(str::to_owned)) {
                *place = path.into();
            }
        }
    };
    absolute(&mut spec["uri"]);
    let bases = spec.get_mut("bases").and_then(Value::as_array_mut).into_iter().flatten();
    bases.filter_map(|base| base.get_mut("path")).for_each(absolute);
    for source in spec.get_mut("sources").and_then(Value::as_array_mut).into_iter().flatten() {
        match source.get_mut("uri") {
            Some(uri) => absolute(uri),
            None => absolute(source),
        }
    }
}

pub fn decode(value: &Value) -> Result<Spec> {
    Spec::decode(value.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_option_of_every_operation_has_a_kind() {
        for operation in lance_tasks::operations::NAMES {
            let options = Options::of(operation);
            let (names, kinds): (Vec<_>, Vec<_>) =
                options.options.iter().map(|(n, k, _)| (n.as_str(), k)).unzip();
            assert!(names.contains(&"uri"), "{operation}: {names:?}");
            // A cleanup makes no version, nor does a read.
            let reads = lance_tasks::operations::reads(operation);
            let properties = *operation != "cleanup" && !reads;
            let has = kinds.contains(&&Kind::Map);
            assert_eq!(has, properties, "{operation}: transaction properties");
        }
        let write = Options::of("write");
        let kind = |name: &str| {
            write
                .options
                .iter()
                .find(|(n, _, _)| n == name)
                .map(|(_, kind, _)| kind.clone())
                .unwrap()
        };
        assert_eq!(kind("max_rows_per_file"), Kind::Number);
        assert_eq!(kind("skip_auto_cleanup"), Kind::Switch);
        assert_eq!(kind("target_bases"), Kind::List(Box::new(Kind::Text(Vec::new()))));
        assert_eq!(kind("initial_bases"), Kind::Json);
        assert!(matches!(kind("mode"), Kind::Text(choices) if choices.len() == 3));
        let cleanup = Options::of("cleanup");
        let age = cleanup.options.iter().find(|(name, _, _)| name == "older_than").unwrap();
        assert_eq!(age.1, Kind::Text(Vec::new()));
        let sources = write.of_items("sources");
        let (_, format, _) = sources.options.iter().find(|(name, _, _)| name == "format").unwrap();
        assert!(matches!(format, Kind::Text(choices) if choices.len() == 5), "{format:?}");
    }

    #[test]
    fn settings() {
        let mut spec = json!({ "uri": "x", "params": { "a": 1 } });
        let settings =
            ["uri=y", "params.zone_size=4096", "name=\"1\"", "replace=true", "column=a.b"]
                .map(str::to_owned);
        set(&mut spec, &settings).unwrap();
        let expected = json!({ "uri": "y", "params": { "a": 1, "zone_size": 4096 }, "name": "1",
            "replace": true, "column": "a.b" });
        assert_eq!(spec, expected);
        for bad in ["uri", "params={a", "uri.x=1"] {
            assert!(set(&mut spec, &[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
