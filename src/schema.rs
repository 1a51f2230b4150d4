//! The JSON Schemas of stage kinds: for editors, for `pipe stages KIND`, and for checking keys.
//!
//! Everything comes from the doc comments and types of the stage kinds; nothing about a single kind is
//! written here.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::diagnostic::list;
use crate::manifest::node::Step;
use crate::stage::{ANY_PORT, Kind};

/// Keys that explain a schema and change nothing of what it takes.
const ANNOTATIONS: &[&str] = &["title", "description", "default", "examples", "deprecated"];

/// The JSON Schema (2020-12) of a whole manifest with these stage kinds.
///
/// Wherever something other than text is expected, text with `${…}` is allowed too.
pub fn pipeline(kinds: &'static [Kind]) -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let mut stages = Vec::new();
    for kind in kinds {
        let mut with = (kind.schema)(&mut generator).to_value();
        loosen(&mut with);
        if let Some(with) = with.as_object_mut() {
            with.remove("title");
            with.remove("$schema");
        }
        stages.push(stage(kind, with));
    }
    let mut definitions = generator.take_definitions(true);
    definitions.values_mut().for_each(loosen);
    definitions.insert("stage".into(), json!({ "oneOf": stages }));
    definitions.insert(
        "reference".into(),
        json!({
            "description": "A value from elsewhere: ${params.NAME}, ${env.NAME} or ${matrix.AXIS}.",
            "type": "string",
            "pattern": "\\$\\{",
        }),
    );
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pipe manifest",
        "description": "A pipeline of stages that `pipe run` runs.",
        "type": "object",
        "required": ["pipeline", "stages"],
        "additionalProperties": false,
        "properties": {
            "pipeline": { "type": "string", "description": "The name of the pipeline." },
            "description": { "type": "string", "description": "What it is for." },
            "params": {
                "type": ["object", "null"],
                "description": "Values that stages refer to as ${params.NAME}; `--set NAME=VALUE` replaces them.",
            },
            "profiles": {
                "type": ["object", "null"],
                "description": "Sets of params that `--profile NAME` puts in place of those above.",
                "additionalProperties": { "type": ["object", "null"] },
            },
            "stages": {
                "type": "object",
                "description": "The stages by name, in any order: the inputs make the graph.",
                "minProperties": 1,
                "propertyNames": { "pattern": "^[A-Za-z][A-Za-z0-9_-]*$" },
                "additionalProperties": { "$ref": "#/$defs/stage" },
            },
        },
        "$defs": definitions,
    })
}

fn stage(kind: &Kind, with: Value) -> Value {
    let ports: Map<String, Value> = kind
        .inputs
        .iter()
        .filter(|port| port.name != ANY_PORT)
        .map(|port| {
            let kinds: Vec<&str> = port.accepts.iter().map(|kind| kind.word()).collect();
            let takes = if kinds.is_empty() { "anything".into() } else { list(&kinds, "or") };
            let description = format!("{} Takes {takes}: `stage` or `stage.output`.", port.about);
            (port.name.to_string(), json!({ "type": "string", "description": description }))
        })
        .collect();
    let needed: Vec<&str> = kind.inputs.iter().filter(|port| port.required).map(|port| port.name).collect();
    let mut required = vec!["uses"];
    if !needed.is_empty() {
        required.push("inputs");
    }
    if with["required"].as_array().is_some_and(|keys| !keys.is_empty()) {
        required.push("with");
    }
    let mut inputs = json!({
        "type": "object",
        "description": "What it takes: port and the stage that gives it.",
        "properties": ports,
        "additionalProperties": false,
    });
    if let Some(any) = kind.inputs.iter().find(|port| port.name == ANY_PORT) {
        inputs["additionalProperties"] = json!({ "type": "string", "description": any.about });
    }
    if !needed.is_empty() {
        inputs["required"] = needed.into();
    }
    json!({
        "title": kind.name,
        "description": kind.about,
        "type": "object",
        "required": required,
        "additionalProperties": false,
        "properties": {
            "uses": { "const": kind.name, "description": kind.about },
            "inputs": inputs,
            "with": with,
            "when": or_reference(json!({
                "type": "boolean",
                "description": "Whether it runs; what needs a stage that is off is off too.",
            })),
            "timeout": {
                "description": "The longest it may run: seconds, or text such as 90s, 15m, 2h.",
                "anyOf": [
                    { "type": "number", "exclusiveMinimum": 0 },
                    { "type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?[smh]$|\\$\\{" },
                ],
            },
            "retries": or_reference(json!({
                "type": "integer", "minimum": 0, "maximum": 10,
                "description": "How often it is tried again after it failed.",
            })),
            "device": {
                "type": "string",
                "description": "Where it runs: auto, cpu, cuda or cuda:N.",
                "pattern": "^(auto|cpu|cuda|cuda:[0-9]+)$|\\$\\{",
            },
            "matrix": {
                "type": "object",
                "description": "One stage for every combination of these values; ${matrix.AXIS} names one.",
                "additionalProperties": {
                    "type": "array", "minItems": 1, "items": { "type": ["string", "number", "boolean"] },
                },
            },
        },
    })
}

/// Allows a reference at every place of a value below `schema`.
fn loosen(schema: &mut Value) {
    let Value::Object(schema) = schema else { return };
    for (key, below) in schema.iter_mut() {
        match (key.as_str(), below) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(loosen_place),
            ("items" | "additionalProperties", place @ Value::Object(_)) => loosen_place(place),
            ("prefixItems", Value::Array(places)) => places.iter_mut().for_each(loosen_place),
            ("anyOf" | "oneOf" | "allOf", Value::Array(branches)) => branches.iter_mut().for_each(loosen),
            _ => {}
        }
    }
}

fn loosen_place(place: &mut Value) {
    loosen(place);
    if !takes_any_text(place) {
        *place = or_reference(place.take());
    }
}

fn takes_any_text(schema: &Value) -> bool {
    let Value::Object(schema) = schema else { return true };
    if ["enum", "const", "pattern", "format", "minLength", "maxLength"]
        .iter()
        .any(|k| schema.contains_key(*k))
    {
        return false;
    }
    match (&schema.get("type"), schema.get("anyOf").or(schema.get("oneOf"))) {
        (Some(Value::String(one)), _) => one == "string",
        (Some(Value::Array(several)), _) => several.iter().any(|one| one == "string"),
        (_, Some(Value::Array(branches))) => branches.iter().any(takes_any_text),
        _ => !schema.contains_key("$ref"),
    }
}

/// The schema or a reference; what explains it stays on the outside, where editors look.
fn or_reference(schema: Value) -> Value {
    let (outside, inside): (Map<String, Value>, Map<String, Value>) = match schema {
        Value::Object(schema) => schema.into_iter().partition(|(key, _)| ANNOTATIONS.contains(&key.as_str())),
        _ => return schema,
    };
    let mut both = outside;
    both.insert("anyOf".into(), json!([inside, { "$ref": "#/$defs/reference" }]));
    Value::Object(both)
}

/// A key under `with`, for `pipe stages KIND`.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyDoc {
    /// The key.
    pub name: String,
    /// What it takes, in words.
    pub takes: String,
    /// What it is where it is left out, if that is a value.
    pub default: Option<Value>,
    /// Whether it can't be left out.
    pub required: bool,
    /// What it does.
    pub about: String,
}

/// The keys of a kind: those that can't be left out, then the others, by name.
pub fn describe(kind: &'static Kind) -> Vec<KeyDoc> {
    let schema = KindSchema::of(kind);
    let required = schema.required();
    let branches = schema.branches(schema.root());
    let properties = branches.iter().filter_map(|branch| branch.get("properties")?.as_object()).flatten();
    let mut keys: Vec<KeyDoc> = properties
        .map(|(name, key)| KeyDoc {
            name: name.clone(),
            takes: schema.words(key),
            default: key.get("default").filter(|value| !value.is_null()).cloned(),
            required: required.contains(&name.as_str()),
            about: key["description"].as_str().unwrap_or_default().replace('\n', " "),
        })
        .collect();
    keys.sort_by(|a, b| (!a.required, &a.name).cmp(&(!b.required, &b.name)));
    keys
}

/// The JSON Schema of what stands under a kind's `with`.
pub struct KindSchema {
    root: Value,
}

impl KindSchema {
    /// The schema of a kind, its definitions within.
    pub fn of(kind: &Kind) -> Self {
        let mut generator = SchemaSettings::draft2020_12().into_generator();
        let mut root = (kind.schema)(&mut generator).to_value();
        if let Some(root) = root.as_object_mut() {
            root.insert("$defs".into(), generator.take_definitions(true).into());
        }
        Self { root }
    }

    /// The schema of all of `with`.
    pub fn root(&self) -> &Value {
        &self.root
    }

    /// The keys that can't be left out.
    pub fn required(&self) -> Vec<&str> {
        let keys = self.root["required"].as_array().into_iter().flatten();
        keys.filter_map(Value::as_str).collect()
    }

    /// The keys a mapping may have at this place; `None` if any, or if nothing is known.
    pub fn keys<'a>(&'a self, here: &'a Value) -> Option<Vec<&'a str>> {
        let mut keys = Vec::new();
        for branch in self.branches(here) {
            let open =
                matches!(branch.get("additionalProperties"), Some(Value::Object(_) | Value::Bool(true)));
            let anything = !["type", "$ref", "anyOf", "oneOf", "allOf", "const", "enum", "properties"]
                .iter()
                .any(|key| branch.get(key).is_some());
            if open || anything {
                return None;
            }
            let properties = branch.get("properties").and_then(Value::as_object);
            keys.extend(properties.into_iter().flat_map(|p| p.keys()).map(String::as_str));
        }
        (!keys.is_empty()).then_some(keys)
    }

    /// The schema one step below a place.
    pub fn below<'a>(&'a self, here: &'a Value, step: &Step) -> Option<&'a Value> {
        self.branches(here).into_iter().find_map(|branch| match step {
            Step::Key(key) => branch
                .get("properties")
                .and_then(|properties| properties.get(key))
                .or(branch.get("additionalProperties").filter(|more| more.is_object())),
            Step::Item(index) => {
                branch.get("prefixItems").and_then(|items| items.get(index)).or(branch.get("items"))
            }
        })
    }

    /// Whether null means something at a place.
    pub fn takes_null(&self, here: &Value) -> bool {
        let is_null = |word: &Value| word.is_null() || word == "null";
        self.branches(here).into_iter().any(|branch| match branch.get("type").or(branch.get("enum")) {
            Some(Value::Array(several)) => several.iter().any(is_null),
            Some(one) => is_null(one),
            // Without a word about its type a schema takes anything.
            None => !["$ref", "anyOf", "oneOf", "allOf", "const"].iter().any(|key| branch.get(key).is_some()),
        })
    }

    /// What a place takes, in words.
    pub fn words(&self, here: &Value) -> String {
        let mut words: Vec<String> = Vec::new();
        for branch in self.branches(here) {
            let consts = branch.get("enum").and_then(Value::as_array).into_iter().flatten();
            for word in branch.get("const").into_iter().chain(consts) {
                match word {
                    Value::String(word) => words.push(format!("`{word}`")),
                    other => words.push(format!("`{other}`")),
                }
            }
            if branch.get("const").or(branch.get("enum")).is_none() {
                let types = match branch.get("type") {
                    Some(Value::Array(several)) => several.iter().collect(),
                    Some(one) => vec![one],
                    None => Vec::new(),
                };
                words.extend(types.into_iter().filter_map(Value::as_str).map(|t| self.type_words(t, branch)));
            }
        }
        let mut seen: Vec<String> = Vec::new();
        words.into_iter().for_each(|word| {
            if !seen.contains(&word) {
                seen.push(word);
            }
        });
        if seen.is_empty() { "anything".into() } else { list(&seen, "or") }
    }

    fn type_words(&self, name: &str, branch: &Value) -> String {
        match name {
            "string" => "text".into(),
            "integer" => "a whole number".into(),
            "number" => "a number".into(),
            "boolean" => "true or false".into(),
            "object" => "a mapping".into(),
            "array" => match branch.get("items").map(|items| self.words(items)).as_deref() {
                Some("text") => "a list of text".into(),
                Some("a whole number") => "a list of whole numbers".into(),
                Some("a number") => "a list of numbers".into(),
                _ => "a list".into(),
            },
            other => other.into(),
        }
    }

    /// A schema and all that it refers to or consists of, itself first.
    fn branches<'a>(&'a self, here: &'a Value) -> Vec<&'a Value> {
        let mut found: Vec<&Value> = Vec::new();
        let mut open = vec![here];
        while let Some(schema) = open.pop() {
            // A type that holds itself comes by a second time.
            if found.iter().any(|known| std::ptr::eq(*known, schema)) {
                continue;
            }
            found.push(schema);
            if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
                open.extend(target.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer)));
            }
            for several in ["allOf", "anyOf", "oneOf"] {
                open.extend(schema.get(several).and_then(Value::as_array).into_iter().flatten().rev());
            }
        }
        found
    }
}

/// The same value with the keys of every mapping sorted.
pub fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        Value::Object(entries) => {
            let mut entries: Vec<(String, Value)> = entries.into_iter().collect();
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            entries.into_iter().map(|(key, value)| (key, sorted(value))).collect()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::stage::{ArtifactKind, Context, Lane, Output, Port, Stage, StageError};

    /// Cuts rows.
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Cut {
        /// The column.
        column: String,
        /// How many rows.
        #[serde(default = "ten")]
        rows: u32,
        /// Which end.
        #[serde(default)]
        end: End,
        /// Where it goes on.
        then: Option<Box<More>>,
        /// Shares.
        #[serde(default)]
        shares: Vec<f64>,
    }

    #[derive(Default, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum End {
        /// The first rows.
        #[default]
        Head,
        /// The last rows.
        Tail,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct More {
        rows: u32,
        then: Option<Box<More>>,
    }

    fn ten() -> u32 {
        10
    }

    impl Stage for Cut {
        const KIND: &'static str = "cut";
        const VERSION: u32 = 1;
        const LANE: Lane = Lane::Cpu;
        const ABOUT: &'static str = "Cuts rows.";
        const EXAMPLE: &'static str = "";
        const INPUTS: &'static [Port] = &[Port {
            name: "dataset",
            accepts: &[ArtifactKind::Dataset],
            required: true,
            about: "The rows.",
        }];
        fn outputs(&self) -> Vec<Output> {
            Vec::new()
        }
        fn run(&self, _: &Context<'_>) -> Result<(), StageError> {
            Ok(())
        }
    }

    static KINDS: &[Kind] = &[Kind::of::<Cut>()];

    #[test]
    fn a_kind_is_described_in_plain_words() {
        let keys = describe(&KINDS[0]);
        let lines: Vec<String> = keys
            .iter()
            .map(|key| {
                let default = key.default.as_ref().map_or("-".into(), Value::to_string);
                format!("{}: {} ({default}, {}) {}", key.name, key.takes, key.required, key.about)
            })
            .collect();
        assert_eq!(
            lines,
            [
                "column: text (-, true) The column.",
                "end: `head` or `tail` (\"head\", false) Which end.",
                "rows: a whole number (10, false) How many rows.",
                "shares: a list of numbers ([], false) Shares.",
                "then: a mapping or null (-, false) Where it goes on.",
            ]
        );
    }

    #[test]
    fn a_reference_may_stand_wherever_text_may_not() {
        let schema = pipeline(KINDS);
        let with = &schema["$defs"]["stage"]["oneOf"][0]["properties"]["with"];
        let reference = json!({ "$ref": "#/$defs/reference" });
        assert_eq!(with["properties"]["column"], json!({ "description": "The column.", "type": "string" }));
        let rows = &with["properties"]["rows"];
        assert_eq!((&rows["description"], &rows["default"]), (&json!("How many rows."), &json!(10)));
        assert_eq!(rows["anyOf"][0]["type"], "integer");
        for place in [rows, &with["properties"]["end"], &with["properties"]["shares"]["anyOf"][0]["items"]] {
            assert_eq!(place["anyOf"][1], reference, "{place}");
        }
        assert_eq!(schema["$defs"]["More"]["properties"]["rows"]["anyOf"][1], reference);
    }

    #[test]
    fn null_is_taken_where_a_value_may_be_left_out() {
        let schema = KindSchema::of(&KINDS[0]);
        let takes = |key: &str| {
            schema.below(schema.root(), &Step::Key(key.into())).is_some_and(|here| schema.takes_null(here))
        };
        assert_eq!(["then", "rows", "end", "shares"].map(takes), [true, false, false, false]);
    }

    #[test]
    fn a_stage_is_told_by_its_kind() {
        let schema = pipeline(KINDS);
        let stage = &schema["$defs"]["stage"]["oneOf"][0];
        assert_eq!(stage["properties"]["uses"]["const"], "cut");
        assert_eq!(stage["required"], json!(["uses", "inputs", "with"]));
        assert_eq!(
            stage["properties"]["inputs"]["properties"]["dataset"]["description"],
            "The rows. Takes dataset: `stage` or `stage.output`."
        );
        assert_eq!(pipeline(KINDS).to_string(), schema.to_string());
    }

    #[test]
    fn a_type_that_holds_itself_is_walked_once() {
        let schema = KindSchema::of(&KINDS[0]);
        let then = schema.below(schema.root(), &Step::Key("then".into())).unwrap();
        assert_eq!(schema.keys(then), Some(vec!["rows", "then"]));
        let deeper = schema.below(then, &Step::Key("then".into())).unwrap();
        assert_eq!(schema.keys(deeper), Some(vec!["rows", "then"]));
    }
}
