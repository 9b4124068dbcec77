"""A Vision Transformer in shapes: what it computes of a part of a batch, written on a tape.

It follows ``models/vit.py`` of the backends, layer by layer. A method's ``Form`` says what stands in a layer's place.
"""

from __future__ import annotations

import math
from dataclasses import replace

from mlx_peft.adaptation.estimate.layers import Layers, Tokens
from mlx_peft.adaptation.estimate.tape import FLOAT32, Array, Store
from mlx_peft.vit.architecture import RELATIVE, ROTARY
from mlx_peft.vit.places import PARAMETERS, PATCH, Kinds, Places
from mlx_peft.vit.relative import TABLE
from mlx_peft.vit.shapes import GAMMAS


class Network(Layers):
    """The blocks and what stands around them."""

    def linear(self, path: str, x: Array) -> Array:
        """A linear layer, as the method has it."""
        return self.form.linear(self, path, x)

    def norm(self, path: str, x: Array) -> Array:
        """A norm, an identity where the model has none of the path."""
        if not self.has(f"{path}.weight"):
            return x
        return self.form.behind(self, path, self.tape.normed(x, self.these(path, "weight", "bias")))

    def scale(self, path: str, name: str, x: Array) -> Array:
        """A layer scale of a block, where it has one, and what a method puts behind it."""
        gamma = GAMMAS[self.architecture.family][name == "ls2"]
        if self.has(f"{path}.{gamma}"):
            x = self.tape.times(x, self.tape.cast(self.parameter(f"{path}.{gamma}"), x.item))
        x = self.form.behind(self, f"{path}.{name}", x)
        return self.tape.scaled(x) if self.drop_path else x

    # A block.

    def block(self, number: int, tokens: Tokens, queries: Kinds | None) -> Tokens:
        """A block as the base has it."""
        with self.tape.holding(tokens.x):
            tokens = self.attend(number, tokens, queries)
        return self.fed(number, tokens)

    def fed(self, number: int, tokens: Tokens) -> Tokens:
        """The second half of a block: x + mlp(norm2(x))."""
        with self.tape.holding(tokens.x):
            return self.with_branch(tokens, self.feed(number, self.read(number, "norm2", tokens.x)))

    def with_branch(self, tokens: Tokens, branch: Array) -> Tokens:
        """Tokens with what the MLP makes of them, of those that go through it."""
        if tokens.gate is not None:
            branch = self.tape.times(branch, tokens.gate)
        return replace(tokens, x=self.tape.add(tokens.x, branch), gate=None)

    def read(self, number: int, norm: str, x: Array) -> Array:
        """What attention or the MLP reads."""
        return x if self.architecture.post_norm else self.norm(f"blocks.{number}.{norm}", x)

    def attend(self, number: int, tokens: Tokens, queries: Kinds | None) -> Tokens:
        """The first half of a block: x + attn(norm1(x)), and what the reducer leaves of it."""
        path, tape = f"blocks.{number}", self.tape
        read = self.read(number, "norm1", tokens.x)
        x, q, k, asking = self.attention(path, tokens.holding(read), queries)
        if self.architecture.post_norm:
            x = self.norm(f"{path}.norm1", x)
        x = self.scale(path, "ls1", x)
        stream = tape.view(tokens.x, (tokens.x.shape[0], len(asking), tokens.x.width))
        tokens = replace(tokens, x=tape.add(stream, x), places=asking)
        return tokens if self.reducer is None else self.reducer(self, number, tokens, q, k, asking)

    def attention(self, path: str, tokens: Tokens, queries: Kinds | None) -> tuple[Array, Array, Array, Places]:
        """proj(attention), and the queries, the keys and the places of those that ask."""
        tape, a = self.tape, self.architecture
        places = tokens.places
        asking = places if queries is None else places.only(queries)
        q, k, v = self.projected(f"{path}.attn", tokens.x)
        heads = a.num_heads
        q, k, v = (tape.view(y, (y.shape[0], heads, y.shape[1], y.width // heads)) for y in (q, k, v))
        q = found = tape.view(q, (q.shape[0], heads, len(asking), q.width))
        q, k = (self.norm(f"{path}.attn.{name}", y) for name, y in (("q_norm", q), ("k_norm", k)))
        if a.positions in ROTARY:
            q, k = (self.turned(y) if PATCH in there.kinds else y for y, there in ((q, asking), (k, places)))
        bias = self.bias(path, q, k, tokens)
        x = tape.attend(q, k, v, bias)
        x = self.norm(f"{path}.attn.norm", x if q is found else tape.reordered(x))
        return self.linear(f"{path}.attn.proj", x), q, k, asking

    def turned(self, x: Array) -> Array:
        """Queries or keys that are turned by their places, in float32."""
        trained = any(self.parameter(name).needs for name in self.parameters if name == "rope.freqs")
        keeps = [x] if trained else []
        wide = self.tape.run([x], x.shape, item=FLOAT32, keeps=keeps, beside=2 * x.size)
        return self.tape.cast(wide, x.item)

    def bias(self, path: str, q: Array, k: Array, tokens: Tokens) -> Array | None:
        """What is added to the scores."""
        found = tokens.sizes
        if found is not None:
            found = self.tape.run([found], found.shape, item=q.item)
        if self.architecture.positions in RELATIVE:
            table = self.these(f"{path}.attn", TABLE) + self.these("rel_pos_bias", TABLE)
            shape = (1, q.shape[1], q.shape[2], k.shape[2])
            found = self.tape.run(table, shape, item=q.item)
        return found

    def projected(self, path: str, x: Array) -> tuple[Array, Array, Array]:
        """q, k and v."""
        if self.architecture.qkv == "split":
            q, k, v = (self.linear(f"{path}.{name}_proj", x) for name in "qkv")
            return q, k, v
        whole = self.linear(f"{path}.qkv", x)
        third = self.tape.view(whole, (*whole.shape[:-1], whole.width // 3))
        if not self.has(f"{path}.q_bias"):
            return third, third, third
        q, v = (self.tape.add(third, self.parameter(f"{path}.{name}_bias")) for name in "qv")
        return q, third, v

    def feed(self, number: int, x: Array) -> Array:
        """The branch of the MLP."""
        path = f"blocks.{number}"
        x = self.mlp(f"{path}.mlp", x)
        if self.architecture.post_norm:
            x = self.norm(f"{path}.norm2", x)
        return self.scale(path, "ls2", x)

    def mlp(self, path: str, x: Array) -> Array:
        """fc2(norm(act(fc1(x)))), or of the two layouts of SwiGLU."""
        layer = self.architecture.mlp_layer
        if layer == "swiglu":
            gate = self.acted(self.linear(f"{path}.fc1_g", x))
            inner = self.tape.times(gate, self.linear(f"{path}.fc1_x", x))
        elif layer == "swiglu_packed":
            both = self.linear(f"{path}.fc1", x)
            half = self.tape.view(both, (*both.shape[:-1], both.width // 2))
            inner = self.tape.times(self.acted(half), half)
        else:
            inner = self.acted(self.linear(f"{path}.fc1", x))
        return self.linear(f"{path}.fc2", self.norm(f"{path}.norm", inner))

    def acted(self, x: Array) -> Array:
        """The activation; the quick GELU is a product of two arrays."""
        if self.architecture.act_layer == "quick_gelu":
            return self.tape.times(x, self.tape.softmax(self.tape.scaled(x)))
        return self.tape.gelu(x) if self.architecture.act_layer == "gelu" else self.tape.activation(x)

    # The model.

    def embed(self, batch: int) -> Tokens:
        """Images to the tokens that enter the blocks."""
        a, tape = self.architecture, self.tape
        pixels = math.prod((batch, a.img_size, a.img_size, 3))
        levels = Array((batch, a.img_size, a.img_size, 3), 1, Store(pixels))
        x = self.pixels = tape.run([levels], levels.shape, item=self.item, beside=2 * pixels * FLOAT32)
        patches = tape.view(x, (batch, a.grid_size**2, 3 * a.patch_size**2))
        path, weight = "patch_embed.proj", self.parameter("patch_embed.proj.weight")
        flat = tape.view(weight, (a.embed_dim, patches.width))
        x = tape.patches(patches, flat, *self.these(path, "bias"))
        x = self.norm("patch_embed.norm", self.form.behind(self, path, x))
        learnt = [self.parameter(PARAMETERS[kind]) for kind in a.places.only(PARAMETERS).kinds]
        special = [tape.run([p], (batch, *p.shape[1:]), item=self.item) for p in learnt]
        x = tape.joined([*special, x], axis=1) if special else x
        if self.has("pos_embed"):
            x = tape.add(x, self.parameter("pos_embed"))
        return Tokens(self.norm("norm_pre", x), a.places)

    def blocks(self, tokens: Tokens) -> Tokens:
        """All blocks, while what they were made from is there."""
        with self.tape.holding(self.pixels):
            return self.between(tokens)

    def between(self, tokens: Tokens) -> Tokens:
        """From block to block."""
        a = self.architecture
        for number in range(a.depth):
            queries = a.kinds_read if number == a.depth - 1 else None
            if self.checkpointing:
                outer = self.tape
                with outer.again(tokens.x) as self.tape:
                    tokens = self.form.block(self, number, tokens, queries)
                self.tape = outer
            else:
                tokens = self.form.block(self, number, tokens, queries)
        return tokens

    def heads(self, tokens: Tokens) -> list[Array]:
        """The logits of each head, from what leaves the last block."""
        a, tape = self.architecture, self.tape
        batch = tokens.x.shape[0]
        x = self.norm("norm", tokens.x)
        vector = (batch, x.width)
        if a.global_pool == "map":
            pooled = self.attention_pooled(tokens.holding(x))
        elif a.global_pool == "token":
            pooled = tape.view(x, vector)
        else:
            pooled = tape.run([x], vector) if tokens.sizes is None else tape.times(tape.run([x], vector), tokens.sizes)
            if a.global_pool == "token_avg":
                pooled = tape.joined([tape.view(x, vector), pooled], axis=1)
        pooled = self.norm("fc_norm", pooled)
        vectors = [("head", pooled)] + ([("head_dist", tape.view(x, vector))] if a.distilled else [])
        return [self.plain(head, tape.scaled(one) if self.head_dropout else one) for head, one in vectors]

    def attention_pooled(self, tokens: Tokens) -> Array:
        """One learnt query that attends to all tokens, and an MLP behind it."""
        tape, x = self.tape, tokens.x
        batch, count, dim = x.shape
        heads = self.architecture.pool_heads
        q = self.plain("attn_pool.q", self.parameter("attn_pool.latent"))
        q = tape.run([q], (batch, heads, 1, dim // heads), item=x.item)
        kv = tape.view(self.plain("attn_pool.kv", x), (batch, heads, count, dim // heads))
        y = self.plain("attn_pool.proj", tape.attend(q, kv, kv, tokens.sizes))
        inner = tape.activation(self.plain("attn_pool.mlp.fc1", self.norm("attn_pool.norm", y)))
        return tape.view(tape.add(y, self.plain("attn_pool.mlp.fc2", inner)), (batch, dim))

    def loss(self, logits: list[Array]) -> None:
        """Of the logits, in float32."""
        for own in logits:
            self.tape.softmax(self.tape.cast(own, FLOAT32))

    def step(self, batch: int) -> None:
        """One part of a batch, of so many images."""
        self.loss(self.heads(self.blocks(self.embed(batch))))
