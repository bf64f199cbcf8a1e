"""Where quantizers go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper
from trtfleet.errors import ModelError, UsageError
from trtfleet.tests.trt_actors.quantization.networks import attention, block, network, node
from trtfleet.trt_actors.quantization.placement import Placement, place
from trtfleet.trt_actors.quantization.source import quantizable

IMAGE = {"x": ("N", 4, 8, 8)}
BLOCK = quantizable(block(downsample=True))


def sites(placement: Placement) -> list[tuple[str, str]]:
    """Each site as (node, tensor)."""
    return [(site.node, site.tensor) for site in placement.sites]


def placed(
    *nodes: NodeProto, weights: dict[str, tuple[int, ...]], exclude: tuple[str, ...] = ()
) -> Placement:
    model = network(nodes, IMAGE, [nodes[-1].output[0]], weights)
    return place(quantizable(model), exclude)


class TestResiduals:
    def test_a_shortcut_is_quantized_and_the_fused_input_is_not(self) -> None:
        found = place(quantizable(block()))
        assert [site.tensor for site in found.sites if site.node == "sum"] == ["start"]
        assert found.activations == ("start", "relu1")
        assert found.nodes == {"Add": 1, "Conv": 2}

    def test_of_two_convolutions_the_shorter_path_is_the_shortcut(self) -> None:
        found = place(BLOCK)
        assert [site.tensor for site in found.sites if site.node == "sum"] == ["conv3"]
        assert found.activations == ("start", "relu1", "conv3")

    def test_a_result_that_others_read_too_is_not_fused(self) -> None:
        found = placed(
            node("Conv", "x w", "conv", pads=[1, 1, 1, 1]),
            node("Add", "conv x", "sum"),
            node("Mul", "sum conv", "y"),
            weights={"w": (4, 4, 3, 3)},
        )
        assert sites(found) == [("conv", "x"), ("conv", "w")]

    def test_an_output_of_the_network_is_not_fused(self) -> None:
        nodes = [node("Conv", "x w", "conv", pads=[1, 1, 1, 1]), node("Add", "conv x", "y")]
        found = place(quantizable(network(nodes, IMAGE, ["y", "conv"], {"w": (4, 4, 3, 3)})))
        assert found.nodes == {"Conv": 1}

    def test_a_bias_and_a_broadcast_are_no_shortcuts(self) -> None:
        found = placed(
            node("Conv", "x w", "conv"),
            node("GlobalAveragePool", "x", "pooled"),
            node("Add", "conv pooled", "mixed"),
            node("Add", "mixed bias", "y"),
            weights={"w": (4, 4, 3, 3), "bias": (1, 4, 6, 6)},
        )
        assert found.nodes == {"Conv": 1}

    def test_an_addition_without_a_product_stays(self) -> None:
        found = placed(
            node("Conv", "x w", "conv", pads=[1, 1, 1, 1]),
            node("Relu", "conv", "relu"),
            node("Add", "relu x", "y"),
            weights={"w": (4, 4, 3, 3)},
        )
        assert found.nodes == {"Conv": 1}

    def test_a_product_with_its_bias_is_fused(self) -> None:
        found = place(quantizable(attention()))
        assert [site.tensor for site in found.sites if site.node == "y"] == ["x"]

    def test_a_sum_of_two_is_an_addition_and_one_of_three_is_not(self) -> None:
        conv = node("Conv", "x w", "conv", pads=[1, 1, 1, 1])
        two = placed(conv, node("Sum", "x conv", "y"), weights={"w": (4, 4, 3, 3)})
        three = placed(conv, node("Sum", "x conv x", "y"), weights={"w": (4, 4, 3, 3)})
        assert (two.nodes, three.nodes) == ({"Conv": 1, "Sum": 1}, {"Conv": 1})


class TestProducts:
    def test_attention_quantizes_both_activations(self) -> None:
        found = place(quantizable(attention()))
        assert [(s.tensor, s.is_weight) for s in found.sites if s.node == "scores"] == [
            ("q", False),
            ("kt", False),
        ]
        assert found.activations == ("x", "q", "kt", "p", "v", "mixed")

    @pytest.mark.parametrize(
        ("made", "shape", "dims", "axis"),
        [
            (node("Conv", "x w", "y"), (8, 4, 3, 3), ("N", 4, 8, 8), 0),
            (node("Conv", "x w", "y", group=4), (8, 1, 3), ("N", 4, 8), 0),
            (node("ConvTranspose", "x w", "y"), (4, 8, 3, 3), ("N", 4, 8, 8), 1),
            (node("Gemm", "x w", "y"), (4, 8), ("N", 4), 1),
            (node("Gemm", "x w", "y", transB=1), (8, 4), ("N", 4), 0),
            (node("Gemm", "w x", "y"), (8, 4), (4, 6), 0),
            (node("Gemm", "w x", "y", transA=1), (4, 8), (4, 6), 1),
            (node("MatMul", "x w", "y"), (4, 8), ("N", 5, 4), 1),
            (node("MatMul", "w x", "y"), (8, 4), ("N", 4, 5), 0),
            (node("MatMul", "x w", "y"), (4,), ("N", 4), None),
            (node("MatMul", "x w", "y"), (3, 4, 8), ("N", 3, 5, 4), None),
        ],
    )
    def test_weights_have_scales_of_output_channels(
        self, made: NodeProto, shape: tuple[int, ...], dims: tuple[int | str, ...], axis: int | None
    ) -> None:
        found = place(quantizable(network([made], {"x": dims}, ["y"], {"w": shape})))
        assert [site.axis for site in found.sites if site.is_weight] == [axis]

    def test_biases_are_no_sites(self) -> None:
        assert not {"b1", "b2"} & {site.tensor for site in place(BLOCK).sites}

    def test_computed_weights_stay_in_single_precision_and_it_is_said(self) -> None:
        nodes = [node("Tanh", "k", "w"), node("Conv", "x w", "conv"), node("Conv", "conv v", "y")]
        model = network(nodes, {**IMAGE, "k": (4, 4, 3, 3)}, ["y"], {"v": (4, 4, 3, 3)})
        found = place(quantizable(model))
        assert found.skipped == {"conv": "its weights w are computed by the network"}
        assert found.nodes == {"Conv": 1}

    def test_double_precision_stays(self) -> None:
        nodes = [node("Cast", "x", "d", to=TensorProto.DOUBLE), node("MatMul", "d d", "p")]
        nodes += [node("Cast", "p", "f", to=TensorProto.FLOAT), node("MatMul", "f f", "y")]
        found = place(quantizable(network(nodes, {"x": (4, 4)}, ["y"], {})))
        assert (found.activations, [*found.skipped]) == (("f",), ["p"])

    def test_weights_that_are_not_finite_stay(self) -> None:
        model = block()
        values = numpy_helper.to_array(model.graph.initializer[2]).copy()
        values[0, 0, 0, 0] = np.nan
        model.graph.initializer[2].CopyFrom(numpy_helper.from_array(values, "w2"))
        assert place(quantizable(model)).skipped == {"conv2": "NaN or infinite weights in w2"}

    def test_operators_of_other_domains_are_left_alone(self) -> None:
        model = network(
            [node("MatMul", "x x", "y", domain="own"), node("MatMul", "x x", "z")], {"x": (4, 4)}, ["z"], {}
        )
        model.opset_import.append(helper.make_opsetid("own", 1))
        assert {site.node for site in place(model).sites} == {"z"}

    def test_nothing_to_quantize(self) -> None:
        model = network([node("Relu", "x", "y")], IMAGE, ["y"], {})
        with pytest.raises(ModelError, match="the model has no Conv, ConvTranspose, Gemm or MatMul"):
            place(quantizable(model))

    def test_nothing_that_can_be_quantized(self) -> None:
        nodes = [node("Tanh", "k", "w"), node("Conv", "x w", "y")]
        model = network(nodes, {**IMAGE, "k": (4, 4, 3, 3)}, ["y"], {})
        with pytest.raises(ModelError, match="none can be quantized; node 'y': its weights w are computed"):
            place(quantizable(model))


class TestExclusion:
    @pytest.mark.parametrize(
        ("exclude", "names"),
        [
            (("conv1",), ["conv1"]),
            (("conv[13]", "Add"), ["conv1", "conv3", "sum"]),
            (("A*",), ["sum"]),
            (("conv1", "conv3"), ["conv1", "conv3"]),
            (("Add",), ["sum"]),
            (("Relu",), []),
        ],
    )
    def test_names_operators_and_patterns(self, exclude: tuple[str, ...], names: list[str]) -> None:
        found = place(BLOCK, exclude)
        assert sorted(found.excluded) == names
        assert {site.node for site in found.sites} == {"conv1", "conv2", "conv3", "sum"} - set(names)

    def test_a_literal_name_with_brackets_comes_before_patterns(self) -> None:
        nodes = [
            node("MatMul", "x w", "a", "layer[1]"),
            node("Tanh", "a", "b"),
            node("MatMul", "b w", "y", "layer1"),
        ]
        model = quantizable(network(nodes, {"x": ("N", 4)}, ["y"], {"w": (4, 4)}))
        assert place(model, ("layer[1]",)).excluded == ("layer[1]",)

    def test_an_unknown_one_is_named_with_what_is_near(self) -> None:
        with pytest.raises(UsageError, match="exclude names 'conv9'") as caught:
            place(BLOCK, ("conv9",))
        assert "conv1" in caught.value.hint
        with pytest.raises(UsageError, match="exclude names 'zzz\\*'") as caught:
            place(BLOCK, ("zzz*",))
        assert caught.value.hint.startswith("there are: conv")

    def test_everything_excluded_is_refused(self) -> None:
        with pytest.raises(UsageError, match="leaves nothing to quantize"):
            place(BLOCK, ("Conv",))

    def test_without_its_convolution_an_addition_is_not_quantized(self) -> None:
        found = place(BLOCK, ("conv2",))
        assert "sum" not in {site.node for site in found.sites}
        assert found.activations == ("start",)

    @given(
        few=st.sets(st.sampled_from(["conv1", "conv2", "Add", "Relu"])),
        more=st.sets(st.sampled_from(["conv1", "conv2", "sum", "y"])),
    )
    def test_excluding_more_asks_for_no_other_range(self, few: set[str], more: set[str]) -> None:
        wide = place(BLOCK, sorted(few))
        narrow = place(BLOCK, sorted(few | more))
        assert set(narrow.activations) <= set(wide.activations)
        assert set(narrow.sites) <= set(wide.sites)
