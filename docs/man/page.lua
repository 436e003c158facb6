-- A page of the docs -> a manual page: NAME in front, SEE ALSO behind, headings one level up and
-- the highest in capitals. Links to other pages of the docs keep their words only, and tables of
-- two columns become lists.

local meta

local function words(value)
  return pandoc.utils.stringify(value)
end

local function heading(block)
  if block.level == 1 then
    return {}
  end
  block.level = block.level - 1
  if block.level == 1 then
    block.content = { pandoc.Str(words(block.content):upper()) }
  end
  return block
end

local function link(inline)
  if inline.target:match("^https?:") then
    return nil
  end
  return inline.content
end

-- Columns of a terminal are too narrow for sentences: the first cell is the term, the second its
-- definition.
local function definitions(wide)
  local simple = pandoc.utils.to_simple_table(wide)
  if #simple.headers ~= 2 then
    return nil
  end
  local items = {}
  for _, row in ipairs(simple.rows) do
    table.insert(items, { pandoc.utils.blocks_to_inlines(row[1]), { row[2] } })
  end
  return pandoc.DefinitionList(items)
end

local function page(document)
  local blocks = pandoc.List({
    pandoc.Header(1, { pandoc.Str("NAME") }),
    pandoc.Para({ pandoc.Str(words(meta.name) .. " - " .. words(meta.summary)) }),
  })
  if document.blocks[1].t ~= "Header" then
    blocks:insert(pandoc.Header(1, { pandoc.Str("DESCRIPTION") }))
  end
  blocks:extend(document.blocks)
  local see = {}
  for _, other in ipairs(meta.see) do
    table.insert(see, words(other))
  end
  blocks:insert(pandoc.Header(1, { pandoc.Str("SEE ALSO") }))
  blocks:insert(pandoc.Para({ pandoc.Str(table.concat(see, ", ")) }))
  return pandoc.Pandoc(blocks, meta)
end

return {
  { Meta = function(value) meta = value end },
  { Header = heading, Link = link, Table = definitions },
  { Pandoc = page },
}
