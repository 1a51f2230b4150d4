//! From text to tokens and blocks, as the binary does it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod project;

use std::path::Path;

use project::Project;

const PIPELINE: &str = r#"pipeline: text
stages:
  rows:
    uses: load_dataset
    with: { path: rows.jsonl }

  tokenizer:
    uses: train_tokenizer
    inputs: { dataset: rows }
    with: { text: "{output}", vocab_size: 270 }

  chat:
    uses: tokenize
    inputs: { dataset: rows }
    with:
      tokenizer: model
      prompt: { lines: ["Human: {instruction}", "{input}"], then: "\n\nAssistant: " }
      target: "{output}"
      end: eos
      special_tokens: false
      max_length: 40
      padding: longest

  template:
    uses: tokenize
    inputs: { dataset: rows }
    with:
      tokenizer: model
      chat:
        - { role: user, text: { lines: ["{instruction}", "{input}"] } }
        - { role: assistant, text: "{output}" }

  column:
    uses: tokenize
    inputs: { dataset: rows }
    with: { tokenizer: model, chat: { column: messages } }

  texts:
    uses: tokenize
    inputs: { dataset: rows, tokenizer: tokenizer }
    with: { text: "{output}", end: eos }

  blocks:
    uses: group_texts
    inputs: { dataset: texts }
    with: { block_size: 16 }
"#;

const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

/// Rows of instruction, input, output and the same as messages, with a tiny model whose tokenizer has a chat
/// template.
fn conversations() -> Project {
    let project = Project::new();
    let mut rows = String::new();
    for (instruction, input, output) in
        [("Add", "1 and 2", "It is 3."), ("Greet", "", "Good day to you!"), ("Count", " to 3 \n", "1, 2, 3")]
    {
        let asked = [instruction, input].join("\n");
        let row = serde_json::json!({
            "instruction": instruction, "input": input, "output": output,
            "messages": [
                {"role": "user", "content": asked.trim()},
                {"role": "assistant", "content": output},
            ],
        });
        rows += &format!("{row}\n");
    }
    project.write("rows.jsonl", &rows);
    project.write("text.yaml", PIPELINE);
    let embedded = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/embedded/model");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        project.write(&format!("model/{file}"), &std::fs::read_to_string(embedded.join(file)).unwrap());
    }
    project.write("model/chat_template.jinja", TEMPLATE);
    project
}

/// What a failing run of one stage says, from the error on.
fn says(project: &Project, code: i32, stage: &str) -> String {
    let ran = project.pipe(&["run", "text.yaml", stage]);
    assert_eq!(ran.code, Some(code), "{}\n{}", ran.stdout, ran.stderr);
    ran.stderr[ran.stderr.find("error").unwrap()..].to_owned()
}

#[test]
fn text_becomes_tokens_and_blocks() {
    let project = conversations();
    project.run(0, &["text.yaml"]);
    let output = |name: &str| project.path(&format!(".pipe/runs/latest/stages/{name}"));
    let rows =
        |stage: &str| pipe::artifact::tokens::Tokens::open(&output(stage)).unwrap().rows("train").unwrap();
    let tokenizer = |path: &Path| pipe::tokenizer::Tokenizer::open(path).unwrap();
    let own = tokenizer(&project.path("model"));
    let text = |ids: &[u32]| own.decode(ids, false).unwrap();

    let chat = rows("chat");
    assert_eq!(text(&chat[1].ids), "Human: Greet\n\nAssistant: Good day to you!</s>");
    assert_eq!(text(&chat[2].ids), "Human: Count\n to 3\n\nAssistant: 1, 2, 3</s>");
    assert_eq!(text(&chat[2].ids[chat[2].prompt_len..]), "1, 2, 3</s>");

    let template = rows("template");
    assert_eq!(text(&template[0].ids), "<user>Add\n1 and 2</s><assistant>It is 3.</s>");
    assert_eq!(template[0].target.as_deref(), Some("It is 3.</s>"));
    assert_eq!(rows("column"), template);

    let trained = tokenizer(&output("tokenizer"));
    assert_eq!(trained.vocab_size(), 270);
    let stream: Vec<u32> = rows("texts").into_iter().flat_map(|row| row.ids).collect();
    assert_eq!(
        trained.decode(&stream, false).unwrap(),
        "It is 3.<|endoftext|>Good day to you!<|endoftext|>1, 2, 3<|endoftext|>"
    );
    let blocks: Vec<Vec<u32>> = rows("blocks").into_iter().map(|row| row.ids).collect();
    assert_eq!(blocks, stream.chunks_exact(16).collect::<Vec<_>>());
}

#[test]
fn a_conversation_that_the_template_refuses_is_named() {
    let project = conversations();
    project.write("model/chat_template.jinja", "{{ raise_exception('no roles, please') }}");
    assert_eq!(
        says(&project, 1, "template"),
        "error: stage `template` failed\n  split `train`, row 0 (from 0): the chat template refuses the \
         conversation: no roles, please\n"
    );
}

#[test]
fn a_tokenizer_without_a_chat_template_says_what_to_do() {
    let project = conversations();
    std::fs::remove_file(project.path("model/chat_template.jinja")).unwrap();
    assert_eq!(
        says(&project, 1, "template"),
        "error: stage `template` failed\n  the tokenizer has no chat template\n  help: put the model's \
         chat_template.jinja beside tokenizer.json, or write the conversation as `prompt` and `target`\n"
    );
}

#[test]
fn a_column_that_holds_no_conversation_is_refused() {
    let project = conversations();
    project.edit("text.yaml", "column: messages", "column: output");
    assert_eq!(
        says(&project, 1, "column"),
        "error: stage `column` failed\n  column `output` of split `train` holds str, which is no conversation\n  \
         help: a conversation is a list of mappings with the texts `role` and `content`\n"
    );
}

#[test]
fn a_block_that_is_never_filled_is_refused() {
    let project = conversations();
    project.edit("text.yaml", "block_size: 16", "block_size: 4096");
    let said = says(&project, 1, "blocks");
    assert!(said.contains("tokens (3 rows) do not fill one block of 4096\n"), "{said}");
    assert!(said.contains("help: lower `block_size`, set `remainder: keep`, or give the split more text\n"));
}

#[test]
fn what_is_wrong_in_the_manifest_is_told_at_its_place() {
    let project = conversations();
    project.edit("text.yaml", "lines: [\"Human: {instruction}\"", "line: [\"Human: {instruction}\"");
    project.edit(
        "text.yaml",
        "- { role: assistant, text: \"{output}\" }",
        "- { role: tool, text: \"{output}\" }",
    );
    project.edit("text.yaml", "vocab_size: 270", "vocab_size: 100");
    let said = says(&project, 2, "chat");
    for line in [
        "error: `prompt` has no key `line`",
        "error: the last message of `chat` has the role `tool`",
        "error: 100 tokens have no room for the 256 bytes and the special tokens",
    ] {
        assert!(said.contains(line), "{line}\n{said}");
    }
}
