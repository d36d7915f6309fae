//! Reading `config.json` files of different library versions.

use tandem_plan::ModelConfig;

fn config(rope: &str) -> ModelConfig {
    let text = format!(
        r#"{{"model_type":"deepseek_v3","vocab_size":384,"hidden_size":256,"intermediate_size":384,"moe_intermediate_size":32,
        "num_hidden_layers":2,"num_attention_heads":8,"kv_lora_rank":64,"qk_nope_head_dim":32,"qk_rope_head_dim":16,"v_head_dim":32{rope}}}"#
    );
    ModelConfig::from_json(&text).expect("a valid config")
}

const YARN: &str = r#""factor":40,"original_max_position_embeddings":4096,"beta_fast":32,"beta_slow":1,"mscale":1.0,"mscale_all_dim":1.0"#;

#[test]
fn every_spelling_of_yarn_is_the_same() {
    let old = config(&format!(r#","rope_theta":5000,"rope_scaling":{{"type":"yarn",{YARN}}}"#));
    assert_eq!(old.rope_theta, 5000.0);
    assert_eq!(old.rope_scaling.as_ref().map(|r| r.factor), Some(40.0));
    assert_eq!(old, config(&format!(r#","rope_theta":5000,"rope_scaling":{{"type":"yarn","rope_type":"yarn","rope_theta":5000,{YARN}}}"#)));
    assert_eq!(old, config(&format!(r#","rope_parameters":{{"rope_type":"yarn","rope_theta":5000,{YARN}}}"#)));
}

#[test]
fn no_scaling_is_absent_null_or_default() {
    let plain = config("");
    assert_eq!(plain.rope_scaling, None);
    assert_eq!(plain, config(r#","rope_scaling":null"#));
    assert_eq!(plain, config(r#","rope_parameters":{"rope_type":"default","rope_theta":10000.0}"#));
}

#[test]
fn shipped_test_checkpoints_are_readable() {
    for dir in ["tests/data/tiny-deepseek/bf16", "tests/data/tiny-deepseek/fp8", "models/nano"] {
        let path = format!("{}/../../{dir}/config.json", env!("CARGO_MANIFEST_DIR"));
        let config = ModelConfig::from_json(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(config.rope_scaling.map(|r| r.kind), Some("yarn".to_owned()), "{dir}");
    }
}

#[test]
fn a_model_of_another_architecture_is_refused_by_name() {
    let error = ModelConfig::from_json(r#"{"model_type":"llama"}"#).unwrap_err();
    assert!(error.to_string().contains("DeepSeek"), "{error}");
}
