-- Everything a run makes, as it happens. Keys are (run, id): logical ids hash content, step and index, never the run.
-- Text is untrusted model output, escaped by _text.keep; `json` (not jsonb) keeps numbers as they were written.

CREATE TABLE run (
    id       text PRIMARY KEY,
    name     text NOT NULL,
    steps    integer NOT NULL,
    recipe   json NOT NULL,
    created  timestamptz NOT NULL DEFAULT now(),
    outcome  json
);

CREATE TABLE template (
    run        text NOT NULL REFERENCES run ON DELETE CASCADE,
    id         text NOT NULL,
    position   bigint GENERATED ALWAYS AS IDENTITY,
    text       text NOT NULL,
    task_type  text NOT NULL,
    complexity text NOT NULL,
    system     text,
    parameters json NOT NULL,
    settings   json NOT NULL,
    examples   json NOT NULL,
    version    integer NOT NULL,
    parents    text[] NOT NULL,
    mutation   text NOT NULL,
    note       text NOT NULL,
    stand_in   boolean NOT NULL,
    PRIMARY KEY (run, id)
);
CREATE INDEX template_parents ON template USING gin (parents);

CREATE TABLE adapter (
    run        text NOT NULL REFERENCES run ON DELETE CASCADE,
    hash       text NOT NULL,
    position   bigint GENERATED ALWAYS AS IDENTITY,
    version    integer NOT NULL,
    parent     text,
    step       integer NOT NULL,
    rate_scale float8 NOT NULL,
    metrics    json NOT NULL,
    weights    bytea NOT NULL,
    optimizer  bytea NOT NULL,
    created    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run, hash),
    FOREIGN KEY (run, parent) REFERENCES adapter
);

CREATE TABLE state (
    run     text NOT NULL REFERENCES run ON DELETE CASCADE,
    step    integer NOT NULL,
    adapter text,
    state   json NOT NULL,
    created timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run, step),
    FOREIGN KEY (run, adapter) REFERENCES adapter
);

-- The population at the beginning of a step: what was known of each living template.
CREATE TABLE member (
    run      text NOT NULL,
    step     integer NOT NULL,
    template text NOT NULL,
    total    float8 NOT NULL,
    trials   float8 NOT NULL,
    fitness  float8 NOT NULL,
    PRIMARY KEY (run, template, step),
    FOREIGN KEY (run, step) REFERENCES state ON DELETE CASCADE,
    FOREIGN KEY (run, template) REFERENCES template
);

CREATE TABLE task (
    run       text NOT NULL REFERENCES run ON DELETE CASCADE,
    id        text NOT NULL,
    question  text NOT NULL,
    answer    text,
    task_type text NOT NULL,
    verifier  text,
    metadata  json NOT NULL,
    PRIMARY KEY (run, id)
);

CREATE TABLE prompt (
    run      text NOT NULL,
    id       text NOT NULL,
    template text NOT NULL,
    task     text NOT NULL,
    messages json NOT NULL,
    PRIMARY KEY (run, id),
    FOREIGN KEY (run, template) REFERENCES template,
    FOREIGN KEY (run, task) REFERENCES task ON DELETE CASCADE
);
CREATE INDEX prompt_template ON prompt (run, template);

-- A group, or (with `lost`: why) a prompt that no rollouts could be drawn for.
CREATE TABLE sample_group (
    run              text NOT NULL,
    id               text NOT NULL,
    step             integer NOT NULL,
    prompt           text NOT NULL,
    lost             text,
    prompt_token_ids integer[] NOT NULL DEFAULT '{}',
    model            text NOT NULL DEFAULT '',
    adapter          text,
    sampling         json,
    seconds          float8 NOT NULL DEFAULT 0,
    created          timestamptz NOT NULL DEFAULT now(),
    scored           timestamptz,
    PRIMARY KEY (run, id),
    CHECK ((lost IS NULL) = (sampling IS NOT NULL)),
    FOREIGN KEY (run, prompt) REFERENCES prompt ON DELETE CASCADE,
    FOREIGN KEY (run, adapter) REFERENCES adapter
);
CREATE INDEX sample_group_step ON sample_group (run, step, id);
CREATE INDEX sample_group_prompt ON sample_group (run, prompt);

-- logprobs: nats, one a token, exact.
CREATE TABLE rollout (
    run           text NOT NULL,
    id            text NOT NULL,
    sample_group  text NOT NULL,
    index         integer NOT NULL,
    position      bigint GENERATED ALWAYS AS IDENTITY,
    text          text NOT NULL,
    token_ids     integer[] NOT NULL,
    logprobs      float8[] NOT NULL,
    finish_reason text NOT NULL CHECK (finish_reason IN ('stop', 'length')),
    seed          numeric NOT NULL,
    PRIMARY KEY (run, id),
    FOREIGN KEY (run, sample_group) REFERENCES sample_group ON DELETE CASCADE
);
CREATE INDEX rollout_group ON rollout (run, sample_group, position);

-- Append-only. `index` counts what was said of one rollout, in the order in which it was said.
CREATE TABLE evaluation (
    run       text NOT NULL,
    rollout   text NOT NULL,
    index     integer NOT NULL,
    judge     text NOT NULL,
    dimension text NOT NULL,
    score     float8,
    rationale text NOT NULL,
    model     text NOT NULL,
    stand_in  boolean NOT NULL,
    created   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run, rollout, index),
    FOREIGN KEY (run, rollout) REFERENCES rollout ON DELETE CASCADE
);

-- `evaluations`: the reward was made from the first so many of its rollout's evaluations.
CREATE TABLE reward (
    run         text NOT NULL,
    rollout     text NOT NULL,
    value       float8,
    evaluations integer NOT NULL,
    PRIMARY KEY (run, rollout),
    FOREIGN KEY (run, rollout) REFERENCES rollout ON DELETE CASCADE
);

CREATE TABLE reward_part (
    run     text NOT NULL,
    rollout text NOT NULL,
    index   integer NOT NULL,
    name    text NOT NULL,
    value   float8,
    weight  float8 NOT NULL,
    PRIMARY KEY (run, rollout, index),
    FOREIGN KEY (run, rollout) REFERENCES reward ON DELETE CASCADE
);

CREATE TABLE advantage (
    run     text NOT NULL,
    rollout text NOT NULL,
    step    integer NOT NULL,
    value   float8 NOT NULL,
    PRIMARY KEY (run, rollout),
    FOREIGN KEY (run, rollout) REFERENCES reward ON DELETE CASCADE
);
CREATE INDEX advantage_step ON advantage (run, step);

-- Exam results at temperature 0. `adapter` is null for the base model.
CREATE TABLE score (
    run      text NOT NULL REFERENCES run ON DELETE CASCADE,
    position bigint GENERATED ALWAYS AS IDENTITY,
    split    text NOT NULL,
    template text NOT NULL,
    adapter  text,
    task     text NOT NULL,
    correct  float8 NOT NULL,
    text     text NOT NULL,
    UNIQUE NULLS NOT DISTINCT (run, split, template, adapter, task)
);

-- What the oracle said, under its request's scope, hash and occurrence.
CREATE TABLE reply (
    run               text NOT NULL REFERENCES run ON DELETE CASCADE,
    key               text NOT NULL,
    text              text NOT NULL,
    model             text NOT NULL,
    stand_in          boolean NOT NULL,
    prompt_tokens     integer NOT NULL,
    completion_tokens integer NOT NULL,
    created           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run, key)
);

-- `digest` is that of step, kind and detail: a step done again leaves one event, not two.
CREATE TABLE event (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run    text NOT NULL REFERENCES run ON DELETE CASCADE,
    step   integer NOT NULL,
    kind   text NOT NULL,
    detail json NOT NULL,
    time   timestamptz NOT NULL DEFAULT now(),
    digest text NOT NULL,
    UNIQUE (run, digest)
);
CREATE INDEX event_run ON event (run, id);

-- What people asked of a run; the newest wish counts.
CREATE TABLE wish (
    id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run  text NOT NULL REFERENCES run ON DELETE CASCADE,
    what text NOT NULL CHECK (what IN ('run', 'pause', 'stop')),
    who  text NOT NULL,
    time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX wish_run ON wish (run, id);

-- Narrow, so that vectors stay beside their keys. Searched exactly: an HNSW index with a filter on the run may miss
-- every row (its candidates are chosen before the filter), and a run's vectors are thousands, not millions.
CREATE TABLE embedding (
    run     text NOT NULL,
    rollout text NOT NULL,
    model   text NOT NULL,
    vector  vector NOT NULL,
    PRIMARY KEY (run, rollout),
    FOREIGN KEY (run, rollout) REFERENCES rollout ON DELETE CASCADE
);

-- Every id a person may ask for, by kind.
CREATE VIEW known AS
    SELECT 'run' AS kind, id AS run, id FROM run
    UNION ALL SELECT 'template', run, id FROM template
    UNION ALL SELECT 'prompt', run, id FROM prompt
    UNION ALL SELECT 'group', run, id FROM sample_group
    UNION ALL SELECT 'rollout', run, id FROM rollout
    UNION ALL SELECT 'adapter', run, hash FROM adapter;
