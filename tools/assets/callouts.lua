-- Callouts and folded code of Quarto's markdown as the HTML that the theme knows.
local function raw(x) return pandoc.RawBlock('html', x) end

local function safe(x) return x:gsub('&', '&amp;'):gsub('<', '&lt;') end

local function title(d, kind)
  local first = d.content[1]
  if d.attributes.title then return d.attributes.title end
  if first and first.t == 'Header' then
    d.content:remove(1)
    return pandoc.utils.stringify(first)
  end
  return kind:sub(1, 1):upper() .. kind:sub(2)
end

local function around(start, d, finish)
  local out = pandoc.List({raw(start)})
  out:extend(d.content)
  out:insert(raw(finish))
  return out
end

local function folded(class, name, d)
  local start = '<details class="' .. class .. '"><summary>' .. name .. '</summary>'
  return around(start, d, '</details>')
end

function Div(d)
  if d.classes:includes('source') then
    return folded('source', 'Source: ' .. safe(d.attributes.summary), d)
  end
  for _, class in ipairs(d.classes) do
    local kind = class:match('^callout%-(%a+)$')
    if kind then
      local name = safe(title(d, kind))
      if d.attributes.collapse == 'true' then return folded(kind, name, d) end
      local start = '<div class="admonition ' .. kind .. '"><p class="admonition-title">'
      return around(start .. name .. '</p>', d, '</div>')
    end
  end
end
