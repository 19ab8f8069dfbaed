"""A TFLite file, built operator by operator: float32 tensors in NHWC, the batch free."""

from collections.abc import Sequence
from typing import Any

import numpy as np

NONE, RELU, RELU6 = 0, 1, 3  # fused activations
SAME, VALID = 0, 1  # padding


class Graph:
    """Tensors and operators; a tensor is its index. Constants of the same content are stored once.

    Args:
        shape: of the input, (1, …): the batch of 1 stands for any.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        from ai_edge_litert import schema_py_generated

        self._schema = schema_py_generated
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [self._schema.BufferT()]  # the first one is empty, for what is no constant
        self._operators: list[Any] = []
        self._codes: dict[int, int] = {}  # place of a builtin operator in the file's list of those used
        self._constants: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self.input = self._tensor("images", tuple(shape))

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Of a tensor, for one image."""
        return tuple(self._tensors[tensor].shape)

    def constant(self, array: Any) -> int:
        """A tensor of numbers; integers are shapes and axes."""
        array = np.asarray(array)
        array = np.ascontiguousarray(array, np.int32 if array.dtype.kind == "i" else np.float32)
        key = array.dtype.name, array.shape, array.tobytes()
        if key not in self._constants:
            buffer = self._schema.BufferT()
            buffer.data = np.frombuffer(key[2], np.uint8)
            self._buffers.append(buffer)
            kind = self._schema.TensorType.INT32 if array.dtype == np.int32 else self._schema.TensorType.FLOAT32
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self._tensor(name, array.shape, kind, len(self._buffers) - 1)
        return self._constants[key]

    def add(
        self, name: str, inputs: Sequence[int], shape: Sequence[int], options: str | None = None, **values: Any
    ) -> int:
        """Append an operator.

        Args:
            name: of the schema's ``BuiltinOperator``.
            inputs: tensors.
            shape: of its output, for one image.
            options: of the schema's ``BuiltinOptions``.
            values: attributes of the options.

        Returns:
            Its output.
        """
        operator = self._operator(getattr(self._schema.BuiltinOperator, name), inputs, shape)
        if options is not None:
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self._schema, f"{options}T")()
            for key, value in values.items():
                setattr(operator.builtinOptions, key, value)
        return operator.outputs[0]

    def fuse(self, tensor: int, activation: int) -> bool:
        """Whether the operator that made ``tensor`` applies an activation itself; from now on it does."""
        options = next((o.builtinOptions for o in reversed(self._operators) if tensor in o.outputs), None)
        if options is None or getattr(options, "fusedActivationFunction", activation) != NONE:
            return False
        options.fusedActivationFunction = activation
        return True

    def reshape(self, tensor: int, shape: Sequence[int]) -> int:
        """The tensor in another shape, whose first size follows from the others and the batch."""
        if self.shape(tensor) == tuple(shape):
            return tensor
        sizes = [-1, *shape[1:]]
        return self.add("RESHAPE", [tensor, self.constant(sizes)], shape, "ReshapeOptions", newShape=sizes)

    def serialized(self, output: int) -> bytes:
        """The file."""
        import flatbuffers

        graph, model = self._schema.SubGraphT(), self._schema.ModelT()
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs, graph.outputs = [self.input], [output]
        self._tensors[output].name = "logits"
        model.version, model.description, model.subgraphs, model.buffers = 3, "whtnet", [graph], self._buffers
        model.operatorCodes = [self._code(builtin) for builtin in self._codes]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _operator(self, builtin: int, inputs: Sequence[int], shape: Sequence[int]) -> Any:
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self._codes.setdefault(builtin, len(self._codes))
        operator.inputs = list(inputs)
        operator.outputs = [self._tensor(f"tensor_{len(self._tensors)}", tuple(shape))]
        self._operators.append(operator)
        return operator

    def _code(self, builtin: int) -> Any:
        code = self._schema.OperatorCodeT()
        code.builtinCode, code.version = builtin, 1
        code.deprecatedBuiltinCode = min(builtin, 127)
        return code

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int = 0, buffer: int = 0) -> int:
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), kind, buffer
        if buffer == 0:
            tensor.shapeSignature = [-1, *shape[1:]]
        self._tensors.append(tensor)
        return len(self._tensors) - 1
