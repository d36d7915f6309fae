//! OpenAI request and response messages.
