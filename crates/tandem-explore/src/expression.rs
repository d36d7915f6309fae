//! Conditions and derived values over knobs: `GEN_TP * NGEN <= 32`, `GEN_MAX_BATCH_SIZE * (1 + GEN_MTP_SIZE)`.
//!
//! Numbers, names, words that are no names (`nvfp4`), `+ - * / %`, comparisons, `&&` or `and`, `||` or `or`, `!` or `not`,
//! parentheses; the usual precedence.

use std::fmt;

use thiserror::Error;

/// What a name or an expression is worth.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A number; conditions are 0 or 1.
    Number(f64),
    /// A word.
    Text(String),
}

impl Operand {
    fn is_true(&self) -> bool {
        !matches!(self, Operand::Number(x) if *x == 0.0)
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operand::Number(x) => write!(f, "{x}"),
            Operand::Text(text) => f.write_str(text),
        }
    }
}

/// Why a text is no expression, or has no value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExpressionError {
    /// Not of the grammar.
    #[error("`{text}`: expected {expected} at `{at}`")]
    Syntax {
        /// The whole text.
        text: String,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        at: String,
    },
    /// Arithmetic with a word.
    #[error("`{0}` is not a number")]
    NotANumber(String),
}

/// A parsed expression.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    /// As it was written.
    pub text: String,
    root: Node,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Number(f64),
    Name(String),
    Not(Box<Node>),
    Minus(Box<Node>),
    Binary(Op, Box<Node>, Box<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Or,
    And,
    Equal,
    Unequal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Plus,
    Minus,
    Times,
    Divide,
    Remainder,
}

/// Operators by precedence, lowest first; longer texts before their beginnings.
const LEVELS: [&[(&str, Op)]; 5] = [
    &[("||", Op::Or), ("or", Op::Or)],
    &[("&&", Op::And), ("and", Op::And)],
    &[
        ("==", Op::Equal),
        ("!=", Op::Unequal),
        ("<=", Op::LessEqual),
        (">=", Op::GreaterEqual),
        ("<", Op::Less),
        (">", Op::Greater),
        ("=", Op::Equal),
    ],
    &[("+", Op::Plus), ("-", Op::Minus)],
    &[("*", Op::Times), ("/", Op::Divide), ("%", Op::Remainder)],
];

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// [`ExpressionError::Syntax`] with the place.
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        let tokens = tokens(text)?;
        let mut parser = Parser { text, tokens: &tokens, at: 0, depth: 0 };
        let root = parser.level(0)?;
        if parser.at < tokens.len() {
            return Err(parser.expected("an operator or the end"));
        }
        Ok(Expression { text: text.to_owned(), root })
    }

    /// The names in it, each once.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        collect(&self.root, &mut names);
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Its value; a name without a value of its own is a word.
    ///
    /// # Errors
    /// [`ExpressionError::NotANumber`] for arithmetic with words.
    pub fn value(&self, value_of: &dyn Fn(&str) -> Option<Operand>) -> Result<Operand, ExpressionError> {
        evaluate(&self.root, value_of)
    }

    /// Whether it holds.
    ///
    /// # Errors
    /// As [`Expression::value`].
    pub fn holds(&self, value_of: &dyn Fn(&str) -> Option<Operand>) -> Result<bool, ExpressionError> {
        self.value(value_of).map(|value| value.is_true())
    }
}

fn collect<'a>(node: &'a Node, names: &mut Vec<&'a str>) {
    match node {
        Node::Number(_) => {}
        Node::Name(name) => names.push(name),
        Node::Not(inner) | Node::Minus(inner) => collect(inner, names),
        Node::Binary(_, a, b) => {
            collect(a, names);
            collect(b, names);
        }
    }
}

fn evaluate(node: &Node, value_of: &dyn Fn(&str) -> Option<Operand>) -> Result<Operand, ExpressionError> {
    let bit = |on: bool| Operand::Number(f64::from(u8::from(on)));
    match node {
        Node::Number(x) => Ok(Operand::Number(*x)),
        Node::Name(name) => Ok(value_of(name).unwrap_or_else(|| match name.as_str() {
            "true" => Operand::Number(1.0),
            "false" => Operand::Number(0.0),
            word => Operand::Text(word.to_owned()),
        })),
        Node::Not(inner) => Ok(bit(!evaluate(inner, value_of)?.is_true())),
        Node::Minus(inner) => Ok(Operand::Number(-number(evaluate(inner, value_of)?)?)),
        Node::Binary(op, a, b) => {
            let a = evaluate(a, value_of)?;
            match op {
                Op::Or => return Ok(bit(a.is_true() || evaluate(b, value_of)?.is_true())),
                Op::And => return Ok(bit(a.is_true() && evaluate(b, value_of)?.is_true())),
                _ => {}
            }
            let b = evaluate(b, value_of)?;
            if let Op::Equal | Op::Unequal = op {
                return Ok(bit((a == b) == (*op == Op::Equal)));
            }
            let (a, b) = (number(a)?, number(b)?);
            Ok(match op {
                Op::Less => bit(a < b),
                Op::LessEqual => bit(a <= b),
                Op::Greater => bit(a > b),
                Op::GreaterEqual => bit(a >= b),
                Op::Plus => Operand::Number(a + b),
                Op::Minus => Operand::Number(a - b),
                Op::Times => Operand::Number(a * b),
                Op::Divide => Operand::Number(a / b),
                _ => Operand::Number(a % b),
            })
        }
    }
}

fn number(operand: Operand) -> Result<f64, ExpressionError> {
    match operand {
        Operand::Number(x) => Ok(x),
        Operand::Text(text) => Err(ExpressionError::NotANumber(text)),
    }
}

/// Words and numbers, and signs of one or two characters.
fn tokens(text: &str) -> Result<Vec<String>, ExpressionError> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let begin = i;
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        if chars[i].is_whitespace() {
            i += 1;
            continue;
        } else if is_word(chars[i]) {
            while i < chars.len() && is_word(chars[i]) {
                i += 1;
            }
        } else if ["||", "&&", "==", "!=", "<=", ">="].contains(&chars[i..(i + 2).min(chars.len())].iter().collect::<String>().as_str()) {
            i += 2;
        } else if "+-*/%<>=!()".contains(chars[i]) {
            i += 1;
        } else {
            return Err(ExpressionError::Syntax {
                text: text.to_owned(),
                expected: "a name, a number or an operator",
                at: chars[i].to_string(),
            });
        }
        tokens.push(chars[begin..i].iter().collect());
    }
    Ok(tokens)
}

struct Parser<'a> {
    text: &'a str,
    tokens: &'a [String],
    at: usize,
    depth: u32,
}

impl Parser<'_> {
    fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", String::as_str)
    }

    fn expected(&self, expected: &'static str) -> ExpressionError {
        let at = if self.at < self.tokens.len() { self.peek().to_owned() } else { "the end".to_owned() };
        ExpressionError::Syntax { text: self.text.to_owned(), expected, at }
    }

    fn level(&mut self, level: usize) -> Result<Node, ExpressionError> {
        let Some(operators) = LEVELS.get(level) else { return self.primary() };
        let mut left = self.level(level + 1)?;
        while let Some((_, op)) = operators.iter().find(|(sign, _)| *sign == self.peek()) {
            self.at += 1;
            left = Node::Binary(*op, Box::new(left), Box::new(self.level(level + 1)?));
        }
        Ok(left)
    }

    fn primary(&mut self) -> Result<Node, ExpressionError> {
        // Deeper nesting than anybody writes would only exhaust the stack.
        self.depth += 1;
        if self.depth > 200 {
            return Err(self.expected("fewer parentheses"));
        }
        let token = self.peek().to_owned();
        let node = match token.as_str() {
            "(" => {
                self.at += 1;
                let inner = self.level(0)?;
                if self.peek() != ")" {
                    return Err(self.expected("`)`"));
                }
                inner
            }
            "!" | "not" => {
                self.at += 1;
                return self.primary().map(|inner| Node::Not(Box::new(inner)));
            }
            "-" => {
                self.at += 1;
                return self.primary().map(|inner| Node::Minus(Box::new(inner)));
            }
            word if word.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
                Node::Number(word.parse().map_err(|_| self.expected("a number"))?)
            }
            word if word.starts_with(|c: char| c.is_alphabetic() || c == '_') && !["and", "or"].contains(&word) => {
                Node::Name(word.to_owned())
            }
            _ => return Err(self.expected("a value")),
        };
        self.at += 1;
        self.depth -= 1;
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: f64) {
        let value_of = |name: &str| match name {
            "A" => Some(Operand::Number(4.0)),
            "B" => Some(Operand::Number(8.0)),
            "DTYPE" => Some(Operand::Text("fp8".to_owned())),
            _ => None,
        };
        assert_eq!(Expression::parse(text).unwrap().value(&value_of), Ok(Operand::Number(expected)), "{text}");
    }

    #[test]
    fn the_usual_precedence_holds() {
        for (text, expected) in [
            ("1 + 2*3", 7.0),
            ("(1+2)*3", 9.0),
            ("8-4-2", 2.0),
            ("-A + B", 4.0),
            ("A*B<=32", 1.0),
            ("A*B<32 or B%A==0", 1.0),
            ("A>B || A<B && A==B", 0.0),
            ("!(A>B) and DTYPE==fp8", 1.0),
            ("DTYPE != nvfp4", 1.0),
            ("not true", 0.0),
        ] {
            check(text, expected);
        }
    }

    #[test]
    fn what_is_no_expression_says_where() {
        for text in ["", "A +", "(A", "A B", "1 ? 2", "A and", "1.2.3", &"(".repeat(5000)] {
            assert!(matches!(Expression::parse(text), Err(ExpressionError::Syntax { .. })), "{text}");
        }
        assert_eq!(Expression::parse("X + 1").unwrap().value(&|_| None), Err(ExpressionError::NotANumber("X".to_owned())));
    }
}
