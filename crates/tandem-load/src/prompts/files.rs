//! Prompts of the user's own: OpenAI JSONL, ShareGPT JSON, or plain text with a prompt on each line.

use serde_json::Value;

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What it says.
    pub content: String,
}

impl Message {
    /// A message of the user.
    #[must_use]
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".to_owned(), content: content.into() }
    }
}

/// A conversation from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenPrompt {
    /// Its messages in order.
    pub messages: Vec<Message>,
    /// Output tokens that the file asks for.
    pub osl: Option<u32>,
    /// What was answered to the last message that is sent first, if the file says: its length is the output length where `osl` is none.
    pub answer: Option<String>,
}

/// Reads a file of prompts, whichever of the three forms it has.
///
/// A JSONL line has `messages` or `prompt` (or `text`), at the top or in a `body` (OpenAI's batch form), and may have
/// `max_completion_tokens`, `max_tokens` or `output_length`. ShareGPT is an array of `conversations` of `from` and `value`.
///
/// # Errors
/// What is not as it should be, for people.
pub fn parse_prompts(text: &str) -> Result<Vec<GivenPrompt>, String> {
    let trimmed = text.trim_start_matches('\u{feff}').trim();
    let prompts = if trimmed.starts_with('[') {
        let items: Vec<Value> = serde_json::from_str(trimmed).map_err(|error| format!("not a JSON array: {error}"))?;
        // ShareGPT has conversations that are empty or begin with the model; they are of no use as prompts.
        items.iter().filter_map(share_gpt).collect()
    } else if trimmed.starts_with('{') {
        let lines = trimmed.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines.map(|(i, line)| json_line(line).map_err(|error| format!("line {}: {error}", i + 1))).collect::<Result<_, _>>()?
    } else {
        let lines = trimmed.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.map(|line| GivenPrompt { messages: vec![Message::user(line)], osl: None, answer: None }).collect::<Vec<_>>()
    };
    if prompts.is_empty() { Err("holds no prompt".to_owned()) } else { Ok(prompts) }
}

fn json_line(line: &str) -> Result<GivenPrompt, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if let Some(prompt) = share_gpt(&value) {
        return Ok(prompt);
    }
    let body = value.get("body").unwrap_or(&value);
    let messages = if let Some(messages) = body.get("messages").and_then(Value::as_array) {
        messages.iter().map(message).collect::<Option<Vec<_>>>().ok_or("a message without a role and text content")?
    } else {
        let text = ["prompt", "text", "text_input"].iter().find_map(|key| body.get(*key).and_then(Value::as_str));
        vec![Message::user(text.ok_or("has neither `messages` nor `prompt`")?)]
    };
    if messages.is_empty() {
        return Err("has no message".to_owned());
    }
    let osl = ["max_completion_tokens", "max_tokens", "output_length"].iter().find_map(|key| body.get(*key).and_then(Value::as_u64));
    Ok(GivenPrompt { messages, osl: osl.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0), answer: None })
}

fn message(value: &Value) -> Option<Message> {
    let role = value.get("role")?.as_str()?.to_owned();
    let content = match value.get("content")? {
        Value::String(text) => text.clone(),
        // Parts: their texts, one after the other.
        Value::Array(parts) => parts.iter().map(|part| part.get("text").and_then(Value::as_str)).collect::<Option<Vec<_>>>()?.concat(),
        _ => return None,
    };
    Some(Message { role, content })
}

/// The conversation up to its last message by the user, and the answer to the first.
fn share_gpt(value: &Value) -> Option<GivenPrompt> {
    let turns = value.get("conversations").or_else(|| value.get("conversation"))?.as_array()?;
    let mut messages = Vec::new();
    for turn in turns {
        let role = match turn.get("from")?.as_str()? {
            "human" | "user" => "user",
            "gpt" | "chatgpt" | "assistant" | "bing" | "bard" => "assistant",
            "system" => "system",
            _ => continue,
        };
        messages.push(Message { role: role.to_owned(), content: turn.get("value")?.as_str()?.to_owned() });
    }
    let first = messages.iter().position(|m| m.role != "system")?;
    if messages[first].role != "user" || messages[first].content.trim().is_empty() {
        return None;
    }
    let answer = messages.get(first + 1).filter(|m| m.role == "assistant").map(|m| m.content.clone());
    // A benchmark of single turns sends the first one, as others do; further turns follow with the answers they really get.
    Some(GivenPrompt { messages, osl: None, answer })
}

impl GivenPrompt {
    /// What is sent first, and what the user says in later turns. Answers in the file between two turns of the user are left out:
    /// the actual ones take their place. With one turn only, a conversation that has an answer (ShareGPT) is its first question; any
    /// other is sent whole, with the history that it has.
    #[must_use]
    pub fn split(&self, n_turns: u32) -> (Vec<Message>, Vec<String>) {
        if n_turns == 1 && self.answer.is_none() {
            return (self.messages.clone(), Vec::new());
        }
        let end = self.messages.iter().position(|m| m.role == "user").map_or(self.messages.len(), |i| i + 1);
        let later = self.messages[end..].iter().filter(|m| m.role == "user").map(|m| m.content.clone());
        (self.messages[..end].to_vec(), later.take(n_turns as usize - 1).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openai_lines_keep_their_messages_and_lengths() {
        let text = concat!(
            "{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"hi\"}]}], \"max_tokens\": 9}\n",
            "{\"custom_id\": \"1\", \"body\": {\"messages\": [{\"role\": \"user\", \"content\": \"two\"}]}}\n",
            "{\"prompt\": \"three\", \"output_length\": 4}\n",
        );
        let prompts = parse_prompts(text).unwrap();
        assert_eq!(prompts[0].messages, [Message { role: "system".into(), content: "s".into() }, Message::user("hi")]);
        assert_eq!(prompts.iter().map(|p| p.osl).collect::<Vec<_>>(), [Some(9), None, Some(4)]);
        assert_eq!(prompts[1].messages, [Message::user("two")]);
        assert_eq!(prompts[0].split(1).0.len(), 2, "sent whole");
    }

    #[test]
    fn share_gpt_gives_the_first_question_and_later_ones_as_turns() {
        let text = r#"[{"id": "a", "conversations": [{"from": "human", "value": "q1"}, {"from": "gpt", "value": "a1"}, {"from": "human", "value": "q2"}, {"from": "gpt", "value": "a2"}, {"from": "human", "value": "q3"}]},
            {"id": "b", "conversations": [{"from": "gpt", "value": "no question"}]}, {"id": "c", "conversations": []}]"#;
        let prompts = parse_prompts(text).unwrap();
        assert_eq!(prompts.len(), 1);
        assert_eq!(prompts[0].answer.as_deref(), Some("a1"));
        assert_eq!(prompts[0].split(1), (vec![Message::user("q1")], vec![]));
        assert_eq!(prompts[0].split(2), (vec![Message::user("q1")], vec!["q2".to_owned()]));
        assert_eq!(prompts[0].split(9).1, ["q2", "q3"]);
    }

    #[test]
    fn plain_text_has_a_prompt_a_line() {
        let prompts = parse_prompts("one two\n\n three\n").unwrap();
        assert_eq!(prompts.iter().map(|p| p.messages[0].content.as_str()).collect::<Vec<_>>(), ["one two", "three"]);
    }

    #[test]
    fn what_is_no_prompt_is_named() {
        for (text, wanted) in [
            ("", "no prompt"),
            ("[1", "array"),
            ("[]", "no prompt"),
            ("{\"a\": 1}", "line 1"),
            ("{\"prompt\": \"x\"}\n{", "line 2"),
            ("{\"messages\": []}", "no message"),
            ("{\"messages\": [{\"role\": \"user\"}]}", "without"),
        ] {
            let error = parse_prompts(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
